"""A fitted TokenAdapt on a store: `tokenadapt.json` (sealed: of which tokenizer, sizes, settings, fidelity) and `weights.safetensors`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from tokenshards import __version__
from tokenshards.pipeline.canonical import seal, sha256_hex, unseal
from tokenshards.pipeline.errors import ConfigError, CorruptObjectError, FormatVersionError, NotFoundError, OtherTokenizerError
from tokenshards.pipeline.shards.codebook import Tables, codebook_sha256
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.storage.tensor_file import load_tensors, save_tensors
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.adapt_sizes import AdaptSizes

__all__ = ["AdaptFile", "copy_adapter", "load_adapter", "read_about", "require_free", "save_adapter"]

JSON_NAME, WEIGHTS_NAME = "tokenadapt.json", "weights.safetensors"
FORMAT, VERSION = "tokenshards-tokenadapt", 2
"""Version 1 had no tables and no reach, and one matrix for both parts of a head."""


@dataclass(frozen=True, kw_only=True)
class AdaptFile:
    """The content of tokenadapt.json."""

    fingerprint: str
    """That of the tokenizer whose ids the networks know."""
    weights_sha256: str
    sizes: AdaptSizes
    settings: dict[str, Any]
    """How it was fitted, or from which file it was imported."""
    fidelity: dict[str, Any]
    """Shares of right ids on held-out images; {} where nothing was measured."""
    sha256: str = field(default="", compare=False)
    """Of the bytes of tokenadapt.json, which name the weights: it identifies the whole."""


def save_adapter(
    adapter: TokenAdapter, spec: TokenizerSpec, store: Store, prefix: str, *, settings: dict[str, Any], fidelity: dict[str, Any]
) -> AdaptFile:
    """Write the networks, weights first; return what was written."""
    weights = {name: tensor.detach().cpu() for name, tensor in adapter.state_dict().items()}
    about = AdaptFile(
        fingerprint=spec.fingerprint, weights_sha256=_digest(weights), sizes=adapter.sizes, settings=settings, fidelity=fidelity
    )
    save_tensors(store, f"{prefix}{WEIGHTS_NAME}", weights, {"fingerprint": spec.fingerprint})
    value = {name: item for name, item in asdict(about).items() if name != "sha256"}
    data = seal({"format": FORMAT, "version": VERSION, "made_by": {"tokenshards": __version__}, **value})
    store.write(f"{prefix}{JSON_NAME}", data)
    return _parsed(data, JSON_NAME)


def require_free(store: Store) -> None:
    """Raise ConfigError where a fitted TokenAdapt, a run or a dataset lies: it would be written over."""
    for name, what in {JSON_NAME: "a fitted TokenAdapt", "run.json": "a run", MANIFEST_POINTER: "a dataset"}.items():
        if store.info(name) is not None:
            raise ConfigError(f"{store.url} holds {what}; expected an empty place for the TokenAdapt. Give another --out")


def read_about(store: Store, prefix: str = "") -> AdaptFile:
    """Read tokenadapt.json.

    Raises NotFoundError where there is none, CorruptObjectError or FormatVersionError where it cannot be read.
    """
    path = f"{prefix}{JSON_NAME}"
    if store.info(path) is None:
        raise NotFoundError(path, f"no fitted TokenAdapt is in {store.url}; give the directory that `fit-tokenadapt --out` made")
    return _parsed(store.read(path), path)


def load_adapter(store: Store, prefix: str, spec: TokenizerSpec, tables: Tables) -> tuple[TokenAdapter, AdaptFile]:
    """Build the networks for a tokenizer, frozen and in evaluation mode.

    Raises OtherTokenizerError where they were fitted for another tokenizer, and what `read_about` raises.
    """
    about = read_about(store, prefix)
    where = f"{store.url}/{prefix}{WEIGHTS_NAME}"
    if about.fingerprint != spec.fingerprint:
        raise OtherTokenizerError(
            f"{store.url}/{prefix}{JSON_NAME}: it was fitted for the tokenizer {about.fingerprint[:12]}…; these tokens are of "
            f"{spec.fingerprint[:12]}…. Fit one with: tokenshards fit-tokenadapt IMAGES --tokenizer DATA --out ADAPT"
        )
    weights, _ = load_tensors(store, f"{prefix}{WEIGHTS_NAME}")
    if _digest(weights) != about.weights_sha256:
        raise CorruptObjectError(where, f"these are not the weights that {JSON_NAME} names; copy the directory again")
    adapter = TokenAdapter(spec, tables, about.sizes)
    adapter.load(weights, where)
    return adapter.eval().requires_grad_(False), about


def copy_adapter(store: Store, prefix: str, to: Store, to_prefix: str) -> None:
    """Copy both objects, the weights first."""
    for name in (WEIGHTS_NAME, JSON_NAME):
        to.write(f"{to_prefix}{name}", store.read(f"{prefix}{name}"))


def _digest(weights: dict[str, Tensor]) -> str:
    return codebook_sha256({name: tensor.numpy() for name, tensor in weights.items()})


def _parsed(data: bytes, path: str) -> AdaptFile:
    value = unseal(data, path)
    if value.get("format") != FORMAT:
        raise CorruptObjectError(path, f"not a fitted TokenAdapt; its format is {value.get('format')!r}")
    if value.get("version") not in (1, VERSION):
        raise FormatVersionError(f"{path}: version {value.get('version')!r}; this version reads 1 to {VERSION}. Upgrade tokenshards")
    try:
        sizes = dict(value["sizes"])
        return AdaptFile(
            **{name: value[name] for name in ("fingerprint", "weights_sha256", "settings", "fidelity")},
            sizes=AdaptSizes(**{**sizes, "out_grid": tuple(sizes["out_grid"])}),
            sha256=sha256_hex(data),
        )
    except (KeyError, TypeError, ConfigError) as error:
        raise CorruptObjectError(path, f"not a fitted TokenAdapt ({type(error).__name__}: {error})") from None
