"""`tokenshards.load_tokenizer`: a tokenizer that takes images in the forms that people have them in, and gives images back.

Authors of tokenizers write a `Tokenizer` (base.py), which gets prepared pixels alone; `ImageTokenizer` stands around it.

Shapes: B images, H height, W width, L sites, Q ids per site.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokenshards.pipeline.config import ImageRules
from tokenshards.pipeline.errors import BadInput, SourceError, TokenizerError, shorten
from tokenshards.pipeline.images.decode import decode_image, prepare_image
from tokenshards.pipeline.records import TokenBatch, concatenate_tokens
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import open_parent
from tokenshards.pipeline.tokenizers.base import Images, Tokenizer, check_ids, describe_tokenizer
from tokenshards.pipeline.tokenizers.directory import open_tokenizer

__all__ = ["ImageTokenizer", "load_tokenizer", "token_batch"]

Channels: TypeAlias = Literal["first", "last"]

AT_A_TIME = 64
_RULES = replace(ImageRules(), sixteen_bit="scale")  # as `predict`: there is no sample of a whole source to look at


class ImageTokenizer:
    """A tokenizer with its preprocessing. `tokenizer` is the plain one, which takes prepared pixels [B, size, size, 3].

    >>> tokenizer = tokenshards.load_tokenizer("photos.tokens")
    >>> tokenizer.encode(np.zeros((50, 70, 3), np.uint8)).ids_BLQ.shape
    (1, 256, 2)
    """

    def __init__(self, tokenizer: Tokenizer, storage_options: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self._storage_options = storage_options or {}

    def __repr__(self) -> str:
        return f"ImageTokenizer({describe_tokenizer(self.tokenizer)})"

    @property
    def spec(self) -> TokenizerSpec:
        """What the ids mean, and how images are prepared."""
        return self.tokenizer.spec

    def codebook(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the code vectors [K, D] of each level as `level_0`, `level_1`, …; {} where ids have no vectors."""
        return self.tokenizer.codebook()

    def encode(self, images: Any, *, channels: Channels | None = None, prepared: bool = False) -> TokenBatch:
        """Return the ids [B, L, Q] of images, each resized and cropped as the tokenizer's spec says.

        `images`: one image or several of any sizes, in a list or another iterable. An image is a file name or URL, a PIL image, or a uint8
        array or torch tensor, [H, W, 3] or [3, H, W]; a batch is [B, H, W, 3] or [B, 3, H, W]. Where both readings fit, as in [3, 5, 3],
        say `channels="first"` or `"last"`. Files give the ids that `tokenize` stores. `prepared`: the pixels are [B, size, size, 3]
        already and are not resized again.

        Raises TokenizerError for other types and shapes, SourceError naming a file that is no image, MissingObjectError for no such file.

        >>> tokenizer = tokenshards.load_tokenizer("photos.tokens")
        >>> tokenizer.encode("photos/class_0/img_0000.jpg").ids_BLQ.shape
        (1, 256, 2)
        >>> tokenizer.encode(torch.zeros(4, 3, 50, 70, dtype=torch.uint8)).ids_BLQ.shape
        (4, 256, 2)
        """
        if prepared:
            return self.tokenizer.encode(np.ascontiguousarray(_array(images, _PIXELS)))
        found = []
        pixels = self._pixels(images, channels)
        while some := list(islice(pixels, AT_A_TIME)):
            found.append(self.tokenizer.encode(np.stack(some)))
        if not found:
            raise TokenizerError("encode got no images; expected at least one")
        return found[0] if len(found) == 1 else concatenate_tokens(found)

    def decode(self, ids: Any) -> Images:
        """Return uint8 images [B, H, W, 3] of a TokenBatch, or of ids [B, L, Q] or [L, Q] as an array or tensor of integers.

        With one id per site, [B, L] does too. Anything that holds a TokenBatch as `tokens` will do: a Batch or Sample of `open_dataset`.
        Raises TokenizerError for other shapes and for ids outside the vocabulary, DecodeNotSupported where there is no way back.

        >>> tokenizer = tokenshards.load_tokenizer("photos.tokens")
        >>> tokenizer.decode(tokenizer.encode(["photos/class_0/img_0000.jpg"])).shape
        (1, 64, 64, 3)
        """
        return self.tokenizer.decode(token_batch(ids, self.spec))

    def _pixels(self, images: Any, channels: Channels | None) -> Iterator[Images]:
        if isinstance(images, (str, os.PathLike)):
            yield self._from_file(os.fspath(images))
        elif isinstance(images, Image.Image):
            yield self._prepared(images, "a PIL image")
        elif _is_array(images):
            for image_HWC in _images_of(_array(images, _PIXELS), channels):
                yield self._prepared(Image.fromarray(image_HWC), "an array")
        elif isinstance(images, Iterable) and not isinstance(images, (bytes, bytearray)):
            for image in images:
                yield from self._pixels(image, channels)
        else:
            raise TokenizerError(
                f"encode got {shorten(images)}, a {type(images).__name__}; expected file names, PIL images, uint8 arrays or torch tensors"
            )

    def _from_file(self, url: str) -> Images:
        store, name = open_parent(url, self._storage_options)
        try:
            return decode_image(store.read(name), self.spec.preprocess, _RULES).pixels_HWC
        except BadInput as error:
            raise SourceError(f"{url}: {error.detail}") from None

    def _prepared(self, image: Image.Image, what: str) -> Images:
        try:
            return prepare_image(image, self.spec.preprocess)
        except BadInput as error:
            raise TokenizerError(f"encode got {what} of no use ({error.detail}). Convert it to RGB, or give the file name") from None


def load_tokenizer(url: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None) -> ImageTokenizer:
    """Open the tokenizer of a dataset, a run or a tokenizer directory, local or any fsspec URL.

    Raises TokenizerError where there is none, or where it needs a permission to run code.

    >>> tokenizer = tokenshards.load_tokenizer("photos.tokens")
    >>> tokenizer.spec.layout.grid, tokenizer.spec.vocabulary
    ((16, 16), (256, 256))
    """
    return ImageTokenizer(open_tokenizer(os.fspath(url), storage_options=storage_options), storage_options)


def token_batch(ids: Any, spec: TokenizerSpec) -> TokenBatch:
    """Return ids in any form that `ImageTokenizer.decode` takes as a TokenBatch, after a check against the spec."""
    tokens = ids if isinstance(ids, TokenBatch) else getattr(ids, "tokens", None)
    if isinstance(tokens, TokenBatch):
        check_ids(tokens.ids_BLQ, spec)
        return tokens
    layout = spec.layout
    wanted = f"a TokenBatch, or integers [B, {layout.sites}, {layout.ids_per_site}]"
    found = _array(ids, wanted) if _is_array(ids) else np.asarray(ids)
    if layout.variable:
        raise TokenizerError(f"decode got {type(ids).__name__}; expected a TokenBatch, because rows of this tokenizer vary in size")
    if found.dtype.kind not in "iu":
        raise TokenizerError(f"decode got {found.dtype} of shape {found.shape}; expected {wanted}")
    if found.ndim == 2:
        one, several = found.shape[1] == layout.ids_per_site, layout.ids_per_site == 1 and found.shape[1] == layout.sites
        if one and several:
            raise TokenizerError(f"decode got ids of shape {found.shape}, one image or several; expected {wanted}")
        found = found[..., None] if several else found[None]
    if found.size and found.min() < 0:
        raise TokenizerError(f"decode got the id {found.min()}; expected 0 or more")
    check_ids(found, spec)
    return TokenBatch(np.ascontiguousarray(found.transpose(0, 2, 1).astype(spec.id_dtype)).transpose(0, 2, 1))


_PIXELS = "uint8 pixels of 0 to 255. Of x from 0 to 1: (x * 255).round().to(torch.uint8)"


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or type(value).__module__.partition(".")[0] == "torch"


def _array(value: Any, expected: str) -> npt.NDArray[Any]:
    """Return an array or a torch tensor as an array. This module does not import torch."""
    if isinstance(value, np.ndarray) or not _is_array(value):
        return np.asarray(value)
    if value.dtype.is_floating_point:
        raise TokenizerError(f"got a tensor of {value.dtype} {list(value.shape)}; expected {expected}")
    found: npt.NDArray[Any] = value.detach().cpu().numpy()
    return found


def _images_of(pixels: npt.NDArray[Any], channels: Channels | None) -> npt.NDArray[np.uint8]:
    """Return pixels [B, H, W, 3]. The axis of the colours is the one that has three places."""
    shape = pixels.shape
    if channels not in (None, "first", "last"):
        raise TokenizerError(f"channels is {channels!r}; expected 'first' or 'last'")
    first = pixels.ndim in (3, 4) and shape[-3] == 3 and channels != "last"
    last = pixels.ndim in (3, 4) and shape[-1] == 3 and channels != "first"
    if pixels.dtype != np.uint8 or not (first or last) or 0 in shape[-3:]:
        cast = ". Of x from 0 to 1: (x * 255).round().astype('uint8')" if pixels.dtype.kind == "f" else ""
        raise TokenizerError(
            f"encode got {pixels.dtype} {list(shape)}; expected uint8 pixels of 0 to 255, [H, W, 3] or [3, H, W], or batches{cast}"
        )
    if first and last:
        raise TokenizerError(f"encode got {list(shape)}: the colours may be its first or last axis; say channels='first' or 'last'")
    batch = pixels if pixels.ndim == 4 else pixels[None]
    return np.ascontiguousarray(batch.transpose(0, 2, 3, 1) if first else batch)
