"""Encoders exported as TorchScript, such as Cosmos DI. A file holds code and tensors, which torch's own interpreter runs, and no Python.

The bytes of the files are the weights, as uint8 [N]. A file does not name its input or its number of ids; a preset or options do. The
shape of the output is probed.

Shapes: B images, L sites, Q ids per site, h and w sides of a grid, H and W of an image, K codes, D values of a code.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError, TokenizerError, shorten
from tokenshards.pipeline.tokenizers.base import SLOTS, DecodeNotSupported, Images, Tables, TokenizerSpec, published_preprocess
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.custom.probe import Ids, ProbedTokenizer, probe_encoder
from tokenshards.pipeline.tokenizers.networks.network import Network, from_pixels, scaled, to_device
from tokenshards.pipeline.tokenizers.weight_files import read_file

__all__ = ["TorchScript", "fsq_table"]

BATCHES = (SLOTS, 1, 2, 4, 16, 32, 64)
"""Batch sizes to try: a traced network may only accept the size that it was traced with."""
SIZE = 256


@dataclass(frozen=True)
class _Preset:
    levels: tuple[int, ...]
    """Levels of finite scalar quantisation."""
    colour_range: tuple[float, float]


PRESETS = {"cosmos-di": _Preset(levels=(8, 8, 8, 5, 5, 5), colour_range=(-1.0, 1.0))}


class _Program(nn.Module):
    """Gives a program its dtype, and returns its first tensor. TokenizerError where the program fails or returns something else."""

    # With channels last, convolutions in bfloat16 round differently: 12.6 % of the ids of Cosmos DI change. The published code gives either
    # result; ours is that of contiguous [B, C, H, W].

    def __init__(self, program: Any, dtype: torch.dtype, where: str, *, gives_ids: bool) -> None:
        super().__init__()
        self.program, self._dtype, self._where, self._gives_ids = program, dtype, where, gives_ids

    def forward(self, values: Tensor) -> Tensor:
        try:
            # Not optimised: the optimiser changes a program after the first batches, and the rounding on a GPU with it.
            with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
                found = self.program(values.to(self._dtype).contiguous())
        except RuntimeError as error:
            if "out of memory" in str(error):  # the interpreter raises one type for every error
                raise torch.OutOfMemoryError(str(error)) from None
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            raise TokenizerError(
                f"{self._where}: the program fails on {_shown(values)} ({shorten(lines[-1], 200)}); expected one that takes it. "
                "Was it exported for another --size, dtype or device?"
            ) from None
        first: Any = found
        while isinstance(first, tuple | list) and first:
            first = first[0]
        right = isinstance(first, Tensor) and first.ndim >= 2 and len(first) == len(values)
        if not right or first.is_floating_point() is self._gives_ids:
            wanted = "integers, [B, L], [B, h, w] or [B, L, Q]" if self._gives_ids else "floating-point images [B, 3, H, W]"
            raise TokenizerError(
                f"{self._where}: for {_shown(values)} the program gives {_shown(found)}; expected {wanted}, with B = {len(values)}, or "
                "several tensors of which this is the first. Export the part of the network that does so"
            )
        result: Tensor = first
        return result


class TorchScript(ProbedTokenizer):
    """An encoder and an optional decoder in files of torch.jit.save. Code vectors are known where a preset has FSQ levels."""

    family = "torchscript"
    FILES = ("encoder", "decoder")

    @classmethod
    def read_checkpoint(cls, url: str, config: ImportConfig, storage_options: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the bytes of the encoder's file and of the decoder's file."""
        urls = {"encoder": url, **({"decoder": config.decoder_file} if config.decoder_file and config.decoder else {})}
        files = {name: read_file(place, storage_options, "a file of torch.jit.save")[0] for name, place in urls.items()}
        return {name: np.frombuffer(data, np.uint8) for name, data in files.items()}

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Any], config: ImportConfig, *, decoder: str, where: str) -> Self:
        """Build the tokenizer of exported files: run them on synthetic images, and keep the shape, batch size and dtype found.

        Raises TokenizerError for a file that is not TorchScript, and for output that is not ids; ConfigError where an option is missing.
        """
        vocabulary, colours, levels = _choices(config)
        program = _load(checkpoint["encoder"], where)
        dtype = next((p.dtype for p in (*program.parameters(), *program.buffers()) if p.is_floating_point()), None)
        if dtype is not None and config.dtype == "bfloat16" != _name(dtype):
            raise ConfigError(f"--dtype is bfloat16; the parameters in {where} are {_name(dtype)}, as they were exported. Leave it out")
        dtype = getattr(torch, config.dtype) if dtype is None else dtype
        size = config.size or SIZE

        def encode(images: Images) -> Ids:
            network = Network(_Program(program, dtype, where, gives_ids=True), fixed_rows=len(images))
            return network(scaled(to_device(images), colours)).cpu().numpy()

        ids, layout = probe_encoder(encode, size, BATCHES, vocabulary, where)
        settings = {"batch": len(ids), "ids_dtype": str(ids.dtype), "ids_shape": list(ids.shape[1:])}
        if "decoder" in checkpoint:
            settings["decoder_batch"] = _decoder_batch(checkpoint["decoder"], ids, size, config.decoder_file or where)
        tables = {"level_0": fsq_table(levels)} if levels else {}
        preprocess = published_preprocess(config, size=size, resize="crop", filter="bicubic", colour_range=colours, decoder=decoder)
        spec = cls.probed_spec(
            checkpoint, tables, "fsq", layout=layout, vocabulary=vocabulary, preprocess=preprocess, config=settings, dtype=_name(dtype)
        )
        return cls(spec, {**checkpoint, **tables}, where)

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer; its files are opened at the first use."""
        missing = {"batch", "ids_dtype", "ids_shape"} - spec.config.keys()
        if missing or "encoder" not in tables:
            raise TokenizerError(f"{cls.family}: {sorted(missing) or 'the encoder'} is missing; copy the whole tokenizer folder")
        return cls(spec, tables, cls.family)

    def keep(self, codes: Sequence[int]) -> Self:
        """Raise TokenizerError: the program finds its ids inside."""
        raise TokenizerError(f"{self.family}: its ids are found inside the program, so none can be left out. Leave out --keep-codes")

    def run_encoder(self, images_BHWC: Images) -> Ids:
        """Return the program's ids of images that are scaled to its colour range."""
        ids: Ids = self._encoder(scaled(to_device(images_BHWC), self._spec.preprocess.colour_range)).cpu().numpy()
        return ids

    def run_decoder(self, ids: Ids) -> Images:
        """Return the images of the decoder's program; raises DecodeNotSupported where no decoder was given."""
        if "decoder" not in self._files:
            raise DecodeNotSupported(f"{self.family}: it was imported without --decoder-file, so there is no way back from ids to pixels")
        pixels_BCHW = self._decoder(torch.from_numpy(ids.astype(self._spec.config["ids_dtype"])))
        return from_pixels(pixels_BCHW, self._spec.preprocess.colour_range)

    @cached_property
    def _encoder(self) -> Network:
        program = _Program(_load(self._files["encoder"], self._where), getattr(torch, self._spec.dtype), self._where, gives_ids=True)
        return Network(program, fixed_rows=self._spec.config["batch"])

    @cached_property
    def _decoder(self) -> Network:
        dtype = getattr(torch, self._spec.config["ids_dtype"])
        program = _Program(_load(self._files["decoder"], self._where), dtype, self._where, gives_ids=False)
        return Network(program, fixed_rows=self._spec.config["decoder_batch"])


def fsq_table(levels: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the vectors [K, D] of finite scalar quantisation. The first value changes fastest; values go from -1 by 1 / (n // 2)."""
    steps = np.cumprod([1, *levels[:-1]])
    half = np.array(levels) // 2
    table: npt.NDArray[np.float32] = (((np.arange(math.prod(levels))[:, None] // steps) % levels - half) / half).astype(np.float32)
    return table


def _choices(config: ImportConfig) -> tuple[tuple[int, ...], tuple[float, float], tuple[int, ...]]:
    """Return vocabulary, colour range and FSQ levels from the options or the preset."""
    for option, value in (("--max-tokens", config.max_tokens), ("--config", config.settings)):
        if value:
            raise ConfigError(f"{option} is {value}; torchscript has no such choice. Leave it out")
    if config.preset is not None:
        preset = PRESETS.get(config.preset)
        if preset is None:
            raise ConfigError(f"--preset is {shorten(config.preset)}; for torchscript, expected {' or '.join(PRESETS)}, or none")
        if config.vocabulary or config.colour_range:
            raise ConfigError(f"--preset {config.preset} says what --vocabulary and --colour-range are; leave these out")
        return (math.prod(preset.levels),), preset.colour_range, preset.levels
    if not config.vocabulary:
        raise ConfigError("--vocabulary is missing; a TorchScript file does not say how many ids there are: expected such as 16384")
    if not config.colour_range:
        raise ConfigError("--colour-range is missing; a TorchScript file does not say what values it wants: expected such as 0,1 or -1,1")
    low, high = config.colour_range
    return config.vocabulary, (low, high), ()


def _decoder_batch(file: npt.NDArray[np.uint8], ids: npt.NDArray[Any], size: int, where: str) -> int:
    """Return the batch size that a decoder accepts, after a check that the decoder returns images."""
    program, refusal = _load(file, where), TokenizerError(f"{where}: no batch to try")
    for batch in BATCHES:
        some = torch.from_numpy(np.resize(ids, (batch, *ids.shape[1:])))
        try:
            drawn = Network(_Program(program, some.dtype, where, gives_ids=False), fixed_rows=batch)(some)
        except TokenizerError as error:
            refusal = error if batch == BATCHES[0] else refusal
            continue
        if drawn.shape[1:] != (3, size, size):
            raise TokenizerError(f"{where}: the decoder gives {list(drawn.shape)}; expected [{batch}, 3, {size}, {size}]")
        return batch
    raise refusal


def _load(file: npt.NDArray[np.uint8], where: str) -> Any:
    """Return the program in a file, on the CPU and ready to run. Raises TokenizerError for any other file."""
    data = file.tobytes()
    if not zipfile.is_zipfile(io.BytesIO(data)):
        seen = "the end of the archive is missing" if data[:4] == b"PK\x03\x04" else f"it begins with {shorten(data[:8])}"
        raise TokenizerError(f"{where}: {len(data):,} bytes are no TorchScript program, {seen}; expected a whole file of torch.jit.save")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
    if not any(name.endswith("constants.pkl") for name in names):
        what = "a state dict, weights without a program" if any(name.endswith("data.pkl") for name in names) else "no TorchScript program"
        raise TokenizerError(
            f"{where}: it holds {what}; expected a file of torch.jit.save. The kinds for state dicts are in pipeline/README.md"
        )
    try:
        with warnings.catch_warnings():  # torch warns that torch.jit is deprecated
            warnings.simplefilter("ignore")
            program: Any = torch.jit.load(io.BytesIO(data), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # damaged bytes may raise any type of error
        reason = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200)
        raise TokenizerError(f"{where}: torch cannot load this TorchScript program ({reason}). Copy the file again") from None
    if hasattr(program, "training"):  # a frozen program has no modes
        program.eval()
    return program


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{_name(value.dtype)} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"({', '.join(_shown(part) for part in value)})"
    return f"a {type(value).__name__}"
