"""What an operation of a transform is.

Shapes: B samples, G mix groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from tokenshards.pipeline.named_code import PREFIX
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import Layout, TokenizerSpec
from tokenshards.stem_adaptors.augment.keys import all_rows
from tokenshards.stem_adaptors.augment.numbers import Draw, Numbers
from tokenshards.stem_adaptors.augment.state import TokenState
from tokenshards.stem_adaptors.config import DRAWS

__all__ = ["Data", "Operation", "short_value"]

Stage = Literal["ids", "embeddings"]


@dataclass(frozen=True, slots=True)
class Data:
    """What an operation may know beforehand about the samples that it will get."""

    layout: Layout
    grid: tuple[int, ...]
    """Sites along each axis where the operation stands: (H, W), (T, H, W) or (L,)."""
    channels: int
    """D of the embeddings."""


class Operation(nn.Module):
    """One step of a transform: a state in, a state out. Subclass it, and name it with `register_augmentation`.

    >>> @tokenshards.register_augmentation("invert")
    ... class Invert(tokenshards.Operation):
    ...     def forward(self, state, numbers):
    ...         return state._replace(x=-state.embeddings)
    >>> model, transform = tokenshards.build("vit_nano", tokenshards.open_dataset("photos.tokens"), augment="0.5*invert()")
    >>> [operation.text() for operation in transform.operations]
    ['one_of(0.5*invert())']

    `forward` changes all samples, with numbers that `draws` has declared. It may write into `state.x`. It must not ask the device for a
    value (`.item()`, `if` on a tensor): the host would wait for a GPU, and torch.compile would fail.
    """

    name: str = ""
    """The name in `augment.ops`."""
    stage: Stage = "embeddings"
    """Whether it works on ids, before the codebook lookup, or on embeddings."""
    by_group: bool = False
    """Whether `OneOf` chooses for a whole mix group, and `hit` has one value for each group."""
    version: int = DRAWS
    """Version of the rules for random draws, see `config.DRAWS`."""
    mixes: bool = False
    """Whether a sample depends on other samples of its mix group."""
    statistics: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
    """Mean and standard deviation of each channel, by which the embeddings are standardised; None where they are raw."""
    gives_ids: bool = False
    """Whether the operation, on embeddings, leaves ids whose code vectors the embeddings are (`TokenState.with_ids`)."""

    reads_ids: bool = False
    """Whether the operation, on embeddings, starts from the ids of whole samples. It then stands first among those on embeddings."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        """The arguments by name, for `text`."""

    def prepare(self, spec: TokenizerSpec, tables: Tables, grid: tuple[int, ...]) -> None:
        """Make the buffers that depend on the tokenizer, or on the sites along each axis where the operation stands.

        Raises ConfigError where the operation needs what the tokenizer lacks.
        """

    def refusal(self, layout: Layout) -> str | None:
        """Return why the operation has no meaning in a layout; None where it has one."""
        return None

    def map_refusal(self) -> str | None:
        """Return why the operation cannot be used where the class of each pixel is learned; None where it can.

        An operation that moves sites and leaves `TokenState.maps_BHW` as it is must have a reason here.
        """
        return None

    def load(self) -> None:
        """Read the files that `forward` needs. Called before the first batch, and never where a run is only measured."""

    def draws(self, data: Data) -> tuple[Draw, ...]:
        """Return the numbers that `forward` will ask for."""
        return ()

    def out_grid(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sites along each axis after the operation."""
        return grid

    def forward(self, state: TokenState, numbers: Numbers) -> TokenState:
        """Return all samples changed."""
        raise NotImplementedError

    def chosen(self, state: TokenState, numbers: Numbers, hit: Tensor) -> TokenState:
        """Return the samples that `hit` marks changed, bool [B], or [G] with `by_group`.

        On a CPU only these samples are computed, unless the operation mixes samples.
        """
        hit_B = hit.repeat(len(state.targets_BC) // len(hit)) if self.by_group else hit
        if self.mixes or all_rows(hit.device):
            x = None if state.x is None else state.x.clone()  # `forward` may write into x
            return state.where(hit_B, self(state._replace(x=x), numbers))
        rows = hit_B.nonzero().flatten()
        taken = state.take(rows)
        return state.put(rows, self(taken, numbers[rows]), taken)

    def text(self) -> str:
        """Return the operation as `augment.ops` names it."""
        if self.name.startswith(PREFIX):
            options = "".join(f", {name}={short_value(value)}" for name, value in self.options.items())
            return f'python("{self.name.removeprefix(PREFIX)}"{options})'
        return f"{self.name}({', '.join(f'{name}={short_value(value)}' for name, value in self.options.items())})"

    def members(self) -> list[Operation]:
        """Return this operation and all within it."""
        return [self]


def short_value(value: object) -> str:
    """Return an option's value as `augment.ops` writes it."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else repr(value)
