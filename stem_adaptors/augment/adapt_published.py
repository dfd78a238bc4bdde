"""The weights of TokenAdapt as SeiT++ (Lee et al. 2024) publishes them: names, shapes, and which sizes they have.

No published file could be had: names and shapes are those that its loader expects.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.adapt_sizes import HEAD_WIDTH, AdaptSizes

__all__ = ["adapter_of_published", "published_names"]

_BLOCK = {
    "block.norm1": "transformer.layers.0.0.norm",
    "block.qkv": "transformer.layers.0.0.fn.to_qkv",
    "block.out": "transformer.layers.0.0.fn.to_out",
    "block.norm2": "transformer.layers.0.1.norm",
    "block.fc1": "transformer.layers.0.1.fn.net.0",
    "block.fc2": "transformer.layers.0.1.fn.net.2",
    "norm": "transformer.norm",
}
_PLACES = {
    "conversion.enter": "conversion_function.0",
    "conversion.positions": "conversion_function.1.de_pos_embedding",
    "conversion.leave": "conversion_function.1.to_pixel.1",
    **{f"conversion.{own}": f"conversion_function.1.{name}" for own, name in _BLOCK.items()},
    "reverse.positions": "reverse_transform.0.en_pos_embedding",
    "reverse.enter": "reverse_transform.0.to_patch_embedding.0",
    "reverse.heads.0": "reverse_transform.1",
    **{f"reverse.{own}": f"reverse_transform.0.{name}" for own, name in _BLOCK.items()},
}


def published_names(adapter: TokenAdapter) -> dict[str, str]:
    """Return our names of the weights with their published names."""
    found = {}
    for name in adapter.state_dict():
        module, _, kind = name.rpartition(".")
        found[name] = _PLACES[name] if name in _PLACES else f"{_PLACES[module]}.{kind}"
    return found


def adapter_of_published(state: Mapping[str, Tensor], spec: TokenizerSpec, tables: Tables, where: str) -> TokenAdapter:
    """Return the networks with published weights. Raises ConfigError naming what is missing, of another shape, or of no use here."""
    if len(spec.vocabulary) > 1:
        raise ConfigError(f"{where}: the published networks know one id per site; the tokenizer has {len(spec.vocabulary)}. Give its own")
    width = _tensor(state, "conversion_function.0.weight", 2, where).shape[0]
    inner = _tensor(state, "conversion_function.1.transformer.layers.0.0.fn.to_qkv.weight", 2, where).shape[0] // 3
    hidden = _tensor(state, "conversion_function.1.transformer.layers.0.1.fn.net.0.weight", 2, where).shape[0]
    sites = _tensor(state, "reverse_transform.0.en_pos_embedding", 3, where).shape[1]
    if inner % HEAD_WIDTH or not inner:
        raise ConfigError(f"{where}: its attention has {inner} channels; expected heads of {HEAD_WIDTH}")
    out_grid = _out_grid(sites, spec, where)
    adapter = TokenAdapter(spec, tables, AdaptSizes(out_grid=out_grid, width=width, heads=inner // HEAD_WIDTH, hidden=hidden))
    own = adapter.state_dict()
    wanted = {published: own[name].shape for name, published in published_names(adapter).items()}
    wrong = [f"{name} is missing" for name in wanted if name not in state]
    wrong += [f"{name} is of no use here" for name in state if name not in wanted]
    for name, shape in wanted.items():
        found = tuple(state[name].shape) if name in state else tuple(shape)
        if found not in (tuple(shape), (1, *shape)):  # positions have an axis for samples
            wrong.append(f"{name} has shape {found}, expected {tuple(shape)}")
    if wrong:
        raise ConfigError(
            f"{where}: {len(wrong)} of its weights do not fit a TokenAdapt for this tokenizer: {'; '.join(wrong[:4])}. Give the tokenizer "
            "whose ids it was trained on"
        )
    adapter.load({name: state[published].reshape(own[name].shape).float() for name, published in published_names(adapter).items()}, where)
    return adapter.eval().requires_grad_(False)


def _tensor(state: Mapping[str, Tensor], name: str, dims: int, where: str) -> Tensor:
    if name not in state or state[name].ndim != dims:
        found = f"of shape {tuple(state[name].shape)}" if name in state else "missing"
        raise ConfigError(f"{where}: {name} is {found}; expected the weights of a TokenAdapt of SeiT++, with {dims} axes there")
    return state[name]


def _out_grid(sites: int, spec: TokenizerSpec, where: str) -> tuple[int, int]:
    """Return the grid of so many sites with the sides' ratio of the tokenizer's grid."""
    height, width = spec.layout.grid
    for rows in range(1, height + 1):
        columns = sites // rows
        if rows * columns == sites and rows * width == columns * height:
            return rows, columns
    raise ConfigError(f"{where}: its result has {sites} sites; expected a part of the tokenizer's {height} x {width} with the same ratio")
