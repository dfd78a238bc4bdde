"""Tokenizers that users write. A callable, named `package.module:callable`, returns an object with `size`, `vocabulary` and `encode`.

A tokenizer directory names the callable and does not contain it. Loading such a directory runs code of this machine with settings from
the directory. The user must therefore allow the callable by name, and loading is refused where the module's file has changed since import.

Shapes: B images, L sites, Q ids per site, K codes, D values of a code.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.activity import step
from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.errors import ConfigError, TokenizerError, shorten
from tokenshards.pipeline.named_code import check_target, reason_of, require_allowed
from tokenshards.pipeline.tokenizers.base import SLOTS, DecodeNotSupported, Images, Tables, TokenizerSpec, published_preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.custom.probe import Ids, ProbedTokenizer, probe_encoder
from tokenshards.pipeline.tokenizers.weight_files import read_file

__all__ = ["PythonTokenizer"]

FILE = "file"
_KEYS = {"target", "settings", "source_sha256", "ids_shape"}


class PythonTokenizer(ProbedTokenizer):
    """`made` is the object of a user's callable. It always gets the same number of images; missing ones are blank."""

    family = "python"
    FILES = (FILE,)

    def __init__(self, spec: TokenizerSpec, made: Any, arrays: Tables) -> None:
        super().__init__(spec, arrays, _where(spec.config["target"]))
        self._made = made

    @classmethod
    def read_checkpoint(cls, url: str, config: ImportConfig, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the bytes of the file for the callable, where there is one."""
        if not url:
            return {}
        return {FILE: np.frombuffer(read_file(url, storage_options, f"one for {_where(config.target)}")[0], np.uint8)}

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any], config: ImportConfig, *, decoder: str, where: str) -> Self:
        """Call the callable, probe its object once, and keep the findings. Asking for the callable by name is permission to run it.

        Raises TokenizerError that names the callable and its fault, ConfigError for an option that this kind does not have.
        """
        for option in ("size", "preset", "max_tokens", "decoder_file", "vocabulary", "colour_range"):
            if getattr(config, option) not in (None, ()):
                raise ConfigError(
                    f"--{option.replace('_', '-')} was given; with --kind python it is the callable's. Pass --config key=value"
                )
        target, where = config.target, _where(config.target)
        check_target(target, TokenizerError)
        source_sha256 = _source_sha256(target)
        made = _make(target, config.settings, checkpoint)
        size, vocabulary, batch = _size(made, where), _vocabulary(made, where), _batch(made, where)
        ids, layout = probe_encoder(partial(_encode_batch, made, where), size, (batch,), vocabulary, where)
        if hasattr(made, "decode"):
            _decode_batch(made, where, size, ids.astype(np.int64))
        tables = _tables(made, vocabulary, where)
        identity = {"target": target, "settings": dict(config.settings), "source_sha256": source_sha256}
        settings = {**identity, "ids_shape": list(ids.shape[1:]), "batch": batch}
        preprocess = published_preprocess(config, size=size, resize="crop", filter="bicubic", decoder=decoder)
        spec = cls.probed_spec(checkpoint, tables, layout=layout, vocabulary=vocabulary, preprocess=preprocess, config=settings)
        return cls(spec, made, {**checkpoint, **tables})

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Call the callable again. Where it is not allowed, or its file changed, TokenizerError comes before anything is imported."""
        missing = _KEYS - spec.config.keys()
        if missing:
            raise TokenizerError(f"{cls.family}: {sorted(missing)} is missing in its config; expected a tokenizer of `import tokenizer`")
        target = str(spec.config["target"])
        where = _where(target)
        check_target(target, TokenizerError)
        require_allowed(target, "this tokenizer", TokenizerError)
        found, expected = _source_sha256(target), str(spec.config["source_sha256"])
        if found != expected:
            raise TokenizerError(
                f"{where}: the file of its module has the sha256 {found[:12]}…, and had {expected[:12]}… when the tokenizer was imported; "
                "expected the same file, as ids might differ. Bring it back, or import again for a new dataset"
            )
        made = _make(target, spec.config["settings"], tables)
        seen, stored = (_size(made, where), _vocabulary(made, where), _batch(made, where)), (spec.preprocess.size, spec.vocabulary)
        if seen != (*stored, spec.config.get("batch")):
            raise TokenizerError(
                f"{where}: size, vocabulary and batch are {seen}; the tokenizer was imported with {stored}. Import it again"
            )
        return cls(spec, made, tables)

    def keep(self, codes: Sequence[int]) -> Self:
        """Raise TokenizerError: the callable decides its ids."""
        raise TokenizerError(f"{self._where}: its ids are its own, so none can be left out. Leave out --keep-codes")

    def run_encoder(self, images_BHWC: Images) -> Ids:
        """Return the ids of the object's `encode`; TokenizerError where it fails."""
        return self._run(partial(_encode_batch, self._made, self._where), images_BHWC)

    def run_decoder(self, ids: Ids) -> Images:
        """Return the images of the object's `decode`; raises DecodeNotSupported where it has none."""
        if not hasattr(self._made, "decode"):
            raise DecodeNotSupported(f"{self._where}: it has no `decode`, so there is no way back from ids to pixels")
        return self._run(partial(_decode_batch, self._made, self._where, self._spec.preprocess.size), ids.astype(np.int64))

    def _run(self, function: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Call a function on rows, one batch at a time. Each batch is a copy that the function may write to; zeros fill the last one."""
        batch, parts = self._spec.config["batch"], []
        for start in range(0, max(len(rows), 1), batch):
            some = rows[start : start + batch]
            padded = np.zeros((batch, *rows.shape[1:]), rows.dtype)
            padded[: len(some)] = some
            parts.append(function(padded))
            step()
        return np.concatenate(parts)[: len(rows)]


def _where(target: str) -> str:
    return f"python:{target}"


def _source_sha256(target: str) -> str:
    """Return the digest of the file that holds the callable. Runs no code of the module."""
    module = target.partition(":")[0]
    try:
        found = importlib.util.find_spec(module)  # imports the packages above it
    except Exception as error:
        raise TokenizerError(
            f"{_where(target)}: {module} cannot be found ({reason_of(error)}); mend its package, or check the name"
        ) from error
    if found is None:
        raise TokenizerError(
            f"{_where(target)}: there is no module {module} on the Python path; expected it in a folder of PYTHONPATH, or installed. "
            "On a cluster it must be on every node"
        )
    if not found.has_location or found.origin is None:
        raise TokenizerError(
            f"{_where(target)}: {module} has no file; expected a module in a file of its own, which is part of the identity"
        )
    return sha256_hex(Path(found.origin).read_bytes())


def _make(target: str, settings: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    module, _, name = target.partition(":")
    where = _where(target)
    build = getattr(_call(where, f"importing {module}", lambda: importlib.import_module(module)), name, None)
    if not callable(build):
        raise TokenizerError(
            f"{where}: {module} has no callable {name}, but {shorten(build)}; expected a function or a class. Check the name"
        )
    arguments = [dict(settings), *(np.asarray(array).tobytes() for name, array in arrays.items() if name == FILE)]
    made = _call(where, name, lambda: build(*arguments))
    for part in ("size", "vocabulary", "encode"):
        if not hasattr(made, part):
            raise TokenizerError(f"{where}: it gives {shorten(made)} without {part}; expected an object with size, vocabulary and encode")
    return made


def _call(where: str, what: str, function: Callable[[], Any]) -> Any:
    """Return the result of a user's function; an error names the place in the user's code."""
    try:
        return function()
    except Exception as error:
        raise TokenizerError(f"{where}: {what} raised {reason_of(error)}") from error


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def _size(made: Any, where: str) -> int:
    if not _whole(made.size):
        raise TokenizerError(f"{where}: size is {shorten(made.size)}; expected the side of the square images that encode gets, in pixels")
    return int(made.size)


def _vocabulary(made: Any, where: str) -> tuple[int, ...]:
    value = made.vocabulary
    sizes = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not sizes or not all(_whole(size) and size <= 1 << 32 for size in sizes):
        raise TokenizerError(
            f"{where}: vocabulary is {shorten(value)}; expected how many ids there are, or a tuple with that of each level"
        )
    return tuple(int(size) for size in sizes)


def _batch(made: Any, where: str) -> int:
    batch = getattr(made, "batch", SLOTS)
    if not _whole(batch) or batch > 4096:
        raise TokenizerError(f"{where}: batch is {shorten(batch)}; expected how many images encode gets at a time, 1 to 4096")
    return int(batch)


def _tables(made: Any, vocabulary: tuple[int, ...], where: str) -> dict[str, npt.NDArray[np.float32]]:
    value = getattr(made, "codebook", None)
    if value is None:
        return {}
    given = list(value) if isinstance(value, tuple | list) else [value]
    tables = [_call(where, "codebook", partial(np.array, table, np.float32, order="C")) for table in given]
    for q, codes in enumerate(vocabulary):
        if len(tables) != len(vocabulary) or tables[q].ndim != 2 or len(tables[q]) != codes or not np.isfinite(tables[q]).all():
            raise TokenizerError(
                f"{where}: codebook has the shapes {[table.shape for table in tables]}; expected finite numbers [K, D] for each level, "
                f"with K = {', '.join(map(str, vocabulary))}, or no codebook"
            )
    return {f"level_{q}": table for q, table in enumerate(tables)}


def _encode_batch(made: Any, where: str, images_BHWC: Images) -> Ids:
    count = len(images_BHWC)
    ids: Ids = _call(where, "encode", lambda: np.asarray(made.encode(images_BHWC.copy())))
    if ids.ndim < 2 or len(ids) != count:
        raise TokenizerError(
            f"{where}: encode gives {ids.dtype} {list(ids.shape)} for {count} images; expected integers [{count}, L] or more"
        )
    return ids


def _decode_batch(made: Any, where: str, size: int, ids: npt.NDArray[np.int64]) -> Images:
    images: npt.NDArray[Any] = _call(where, "decode", lambda: np.asarray(made.decode(ids)))
    if images.dtype != np.uint8 or images.shape != (len(ids), size, size, 3):
        raise TokenizerError(
            f"{where}: decode gives {images.dtype} {list(images.shape)}; expected uint8 [{len(ids)}, {size}, {size}, 3], or no decode"
        )
    return images
