"""Token ids to code vectors: one gather per level. The tables already contain the sum, the standardisation and the padding.

Shapes: B samples, L sites, Q ids per site, D channels of an embedding, K codes of a level, T x H x W grid of a video, H x W of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.canonical import unseal
from tokenshards.pipeline.errors import ConfigError, MissingObjectError
from tokenshards.pipeline.shards import TokenDataset, TokenizerSpec
from tokenshards.pipeline.shards.commit import unpack_counts
from tokenshards.stem_adaptors.data.batch import require_ids

__all__ = ["Statistics", "TokenEmbedding", "embedding_statistics"]

Statistics = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Mean and standard deviation of each embedding channel over the sites of a dataset."""

DEFAULT_WIDTH = 32
"""Channels of a learned table where the tokenizer has no codebook."""

_BLOCK_BYTES = 1 << 19
"""Rows of a level that are made at a time when levels are summed into one output: they stay in the cache until they are added."""


class TokenEmbedding(nn.Module):
    """Maps ids to embeddings: code vectors of a site's levels, summed or side by side, with each channel standardised.

    Ids [B, L, Q] of uint8, uint16, uint32 or any integer dtype give float32 in channel-last memory:
    grid [B, D, H, W], video [B, D, T, H, W], sequence and pyramid [B, L, D]. Rows of grids and videos that vary in size are put into the
    top left (first frames) of the largest grid. Sites with the pad id, max(spec.vocabulary), give zeros.

    `levels`: `sum`, `concat`, or `auto` as the spec says. `standardise`: (mean_D, std_D), folded into the tables. `learned`: the folded
    tables are parameters. Without a codebook the tables are always learned, and start from normal numbers of `generator`.
    Raises ConfigError where tables, spec and statistics do not fit each other.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        tables: Mapping[str, npt.NDArray[Any]],
        *,
        levels: str = "auto",
        learned: bool = False,
        standardise: Statistics | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.vocabulary = spec.layout, spec.vocabulary
        self.pad_id = max(spec.vocabulary)
        self.learned = learned or spec.codebook is None
        self.concat = _combine(spec, levels) == "concat"
        if spec.codebook is None:
            count = 1 if self.concat else len(spec.vocabulary)
            stored = [torch.randn(size, DEFAULT_WIDTH, generator=generator) * count**-0.5 for size in spec.vocabulary]
        else:
            stored = _folded(level_tables(spec, tables), self.concat, standardise)
        starts = np.cumsum([0, *(table.shape[1] for table in stored)]).tolist()
        self.channels = int(starts[-1] if self.concat else starts[1])
        """D, channels of the output."""
        self._spans = [(starts[q], starts[q + 1]) if self.concat else (0, self.channels) for q in range(len(stored))]
        self._checked_devices: set[torch.device] = set()
        for q, table_KD in enumerate(stored):
            if self.learned:
                self.register_parameter(f"level_{q}", nn.Parameter(table_KD))
            else:
                self.register_buffer(f"level_{q}", self._with_pad(table_KD) if self.layout.variable else table_KD)

    def extra_repr(self) -> str:
        """Return what printing the module shows."""
        how = "concat" if self.concat else "sum"
        return f"vocabulary={self.vocabulary}, channels={self.channels}, {how}, {'learned' if self.learned else 'frozen'}"

    @property
    def grid(self) -> tuple[int, ...]:
        """Sites of the output along each axis: (H, W), (T, H, W) or (L,)."""
        return self.layout.grid or (self.layout.sites,)

    def buffer(self, batch_size: int) -> Tensor:
        """Return memory for `forward(..., out=...)`.

        Fresh pages cost a CPU ten times as much as the gather. A loop that is done with a batch before it asks for the next one saves this
        cost.
        """
        return torch.empty(batch_size * self.layout.sites * self.channels, device=self._table(0).device)

    def forward(self, ids_BLQ: Tensor, *, shapes_BD: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Return embeddings. With `out`, flat float32 of at least that size, the result is a view of `out` (frozen tables only).

        `shapes_BD` are the grids of the rows where the layout varies. Raises ConfigError for ids outside the vocabulary. A GPU is checked
        in the first batch only, because the check costs a synchronisation; later such ids end in CUDA's own index assertion.
        """
        require_ids(ids_BLQ)
        if ids_BLQ.ndim != 3 or ids_BLQ.shape[2] != len(self.vocabulary):
            raise ConfigError(f"ids of shape {tuple(ids_BLQ.shape)}; expected [samples, sites, {len(self.vocabulary)}]")
        if out is not None and self.learned:
            raise ConfigError("`out` was given to an embedding with learned tables; gradients need memory of their own: leave it out")
        wide = torch.int64 if self.pad_id > 2**31 - 1 else torch.int32
        ids_BQL = ids_BLQ.transpose(1, 2).to(wide)
        if shapes_BD is not None:
            ids_BQL = self.on_canvas(ids_BQL, shapes_BD)
        if not torch.compiler.is_compiling():
            self._check(ids_BQL)
        tables = self.tables()
        if self.learned or (out is None and (ids_BQL.device.type != "cpu" or torch.compiler.is_compiling())):
            x_BLD = self._summed(ids_BQL, tables)
        else:
            x_BLD = self._written(ids_BQL, tables, out)
        if not self.layout.grid:
            return x_BLD
        x = x_BLD.reshape(len(x_BLD), *self.layout.grid, self.channels)
        return x.movedim(-1, 1)

    def vectors(self, ids_BNQ: Tensor) -> Tensor:
        """Return float32 [B, N, D], the code vectors of ids of any N sites, without a layout and without a check."""
        return self._summed(ids_BNQ.transpose(1, 2), self.tables())

    def site_mask(self, mask_BL: Tensor | None, shapes_BD: Tensor | None = None) -> Tensor | None:
        """Return True at real sites of the output, [B, *grid] or [B, L]. None where every row fills the output."""
        if shapes_BD is None:
            return mask_BL
        axes = [torch.arange(size, device=shapes_BD.device) < shapes_BD[:, axis, None] for axis, size in enumerate(self.layout.grid)]
        mask = axes[0]
        for inside_BN in axes[1:]:
            mask = mask[..., None] & inside_BN.reshape(len(mask), *[1] * (mask.ndim - 1), -1)
        return mask

    def tables(self) -> list[Tensor]:
        """Return the tables, with a row for the pad id where the layout varies."""
        tables = [self._table(q) for q in range(len(self.vocabulary))]
        return [self._with_pad(table) for table in tables] if self.layout.variable and self.learned else tables

    def _table(self, level: int) -> Tensor:
        return cast(Tensor, getattr(self, f"level_{level}"))

    def _with_pad(self, table_KD: Tensor) -> Tensor:
        """Add zero rows up to the row of the pad id."""
        return F.pad(table_KD, (0, 0, 0, self.pad_id + 1 - len(table_KD)))

    def _summed(self, ids_BQL: Tensor, tables: list[Tensor]) -> Tensor:
        parts = [F.embedding(ids_BQL[:, q], table) for q, table in enumerate(tables)]
        if self.concat:
            return torch.cat(parts, dim=-1)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _written(self, ids_BQL: Tensor, tables: list[Tensor], out: Tensor | None) -> Tensor:
        """Gather level after level into one output, in blocks that stay in the cache while levels are added."""
        batch, levels, sites = ids_BQL.shape
        rows = batch * sites
        if out is None:
            out = torch.empty(rows * self.channels, dtype=tables[0].dtype, device=tables[0].device)
        elif out.numel() < rows * self.channels or not out.is_contiguous():
            raise ConfigError(f"`out` has {out.numel()} values; expected at least {rows * self.channels} in one piece")
        out_ND = out.view(-1)[: rows * self.channels].view(rows, self.channels)
        if levels == 1:
            torch.index_select(tables[0], 0, ids_BQL.reshape(-1), out=out_ND)
            return out_ND.view(batch, sites, self.channels)
        ids_QN = ids_BQL.transpose(0, 1).reshape(levels, rows)
        block = max(1, _BLOCK_BYTES // (self.channels * out_ND.element_size()))
        for start in range(0, rows, block):
            for q, ((left, right), table) in enumerate(zip(self._spans, tables, strict=True)):
                target = out_ND[start : start + block, left:right]
                if q == 0 and not self.concat:
                    torch.index_select(table, 0, ids_QN[q, start : start + block], out=target)
                    continue
                part = torch.index_select(table, 0, ids_QN[q, start : start + block])
                target.copy_(part) if self.concat else target.add_(part)
        return out_ND.view(batch, sites, self.channels)

    def on_canvas(self, ids_BQL: Tensor, shapes_BD: Tensor) -> Tensor:
        """Put rows of different grids into the largest grid, [B, Q, L] to [B, Q, prod(grid)]; the rest holds the pad id."""
        inside = cast(Tensor, self.site_mask(None, shapes_BD)).flatten(1)
        source = torch.zeros((), dtype=torch.int64, device=ids_BQL.device)
        for axis, size in enumerate(self.layout.grid):
            places = torch.arange(size, device=ids_BQL.device).reshape(-1, *[1] * (len(self.layout.grid) - 1 - axis))
            row_sizes = shapes_BD[:, axis].to(ids_BQL.device, torch.int64).reshape(-1, *[1] * len(self.layout.grid))
            source = source * row_sizes + places
        source_BL = source.flatten(1).masked_fill(~inside, 0)
        gathered = ids_BQL.gather(2, source_BL[:, None].expand(-1, ids_BQL.shape[1], -1))
        return gathered.masked_fill(~inside[:, None], self.pad_id)

    def check(self, ids_BLQ: Tensor) -> None:
        """Raise ConfigError for stored ids outside of the vocabulary. `forward` does so too, except in a graph of torch.compile."""
        self._check(ids_BLQ.transpose(1, 2))

    def _check(self, ids_BQL: Tensor) -> None:
        expected = None if self.layout.variable else self.layout.sites
        if expected is not None and ids_BQL.shape[2] != expected:
            raise ConfigError(f"rows of {ids_BQL.shape[2]} sites; the dataset's layout has {expected}")
        if ids_BQL.device.type == "meta":  # shapes alone
            return
        if ids_BQL.is_cuda:
            if ids_BQL.device in self._checked_devices:
                return
            self._checked_devices.add(ids_BQL.device)
        if ids_BQL.numel() == 0:
            return
        for q, size in enumerate(self.vocabulary):
            low, high = (int(value) for value in torch.aminmax(ids_BQL[:, q]))
            if high >= size and self.layout.variable:
                ids_BL = ids_BQL[:, q]
                high = int(torch.where(ids_BL == self.pad_id, 0, ids_BL).amax())
            if low < 0 or high >= size:
                raise ConfigError(
                    f"level {q} has ids from {low} to {high}; the vocabulary has 0 to {size - 1}. "
                    "These ids come from another tokenizer, or an augmentation changed them wrongly"
                )


def level_tables(spec: TokenizerSpec, tables: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
    """Return the code vectors of each level as float32 [K, D]. ConfigError where a table is missing or has another shape than in the
    spec."""
    if spec.codebook is None:
        raise ConfigError(f"tokenizer family {spec.family!r} has no codebook; its embeddings can only be learned")
    widths: Sequence[int] = spec.codebook.dims
    found = {name: tuple(table.shape) for name, table in tables.items()}
    expected = {f"level_{q}": (size, width) for q, (size, width) in enumerate(zip(spec.vocabulary, widths, strict=True))}
    if found != expected:
        raise ConfigError(f"codebook tables {found}; the spec expects {expected}. Take them from `dataset.codebook()`")
    return [np.ascontiguousarray(tables[name], dtype=np.float32) for name in expected]


def embedding_statistics(dataset: TokenDataset, *, levels: str = "auto") -> Statistics | None:
    """Return mean and standard deviation of each channel, as `TokenEmbedding` with these `levels` gives them without standardising.

    The source is the tokenizer's own statistics, measured at its fit. Without them the dataset's id counts are used; the variances of
    summed levels then add up as if levels were independent. None without a codebook, or where neither source exists.
    """
    spec = dataset.spec
    if spec.codebook is None:
        return None
    concat = _combine(spec, levels) == "concat"
    if concat == (spec.layout.combine == "concat"):
        measured = _measured(dataset)
        if measured is not None:
            return measured
    packed = dataset.manifest.statistics.get("histogram") or []
    if not packed:
        return None
    means, variances = [], []
    for text, size, table_KD in zip(packed, spec.vocabulary, level_tables(spec, dataset.codebook()), strict=True):
        counts_K = unpack_counts(text, size)
        if not counts_K.any():
            return None
        mean_D = np.average(table_KD, axis=0, weights=counts_K)
        means.append(mean_D)
        variances.append(np.average(np.square(table_KD - mean_D), axis=0, weights=counts_K))
    join = np.concatenate if concat else (lambda parts: np.sum(parts, axis=0))
    return join(means).astype(np.float32), np.sqrt(join(variances)).astype(np.float32)


def _measured(dataset: TokenDataset) -> Statistics | None:
    path = "tokenizer/tokenizer.json"
    try:
        statistics = unseal(dataset.store.read(path), path).get("statistics") or {}
    except MissingObjectError:
        return None
    found = statistics.get("embedding")
    return None if not found else (np.asarray(found["mean"], np.float32), np.asarray(found["std"], np.float32))


def _combine(spec: TokenizerSpec, levels: str) -> str:
    if levels not in ("auto", "sum", "concat"):
        raise ConfigError(f"levels is {levels!r}; expected auto, sum or concat")
    return levels if levels != "auto" else "concat" if spec.layout.combine == "concat" else "sum"


def _folded(stored: list[npt.NDArray[np.float32]], concat: bool, standardise: Statistics | None) -> list[Tensor]:
    """Return tables whose sum (or concatenation) is already standardised: each is divided by std, and the first also loses the mean."""
    widths = [table.shape[1] for table in stored]
    if not concat and len(set(widths)) > 1:
        raise ConfigError(f"levels have {widths} channels; they can only be summed with equal ones. Use levels='concat'")
    if standardise is None:
        return [torch.from_numpy(table.copy()) for table in stored]
    mean_D, std_D = (np.asarray(part, np.float64) for part in standardise)
    channels = sum(widths) if concat else widths[0]
    if mean_D.shape != (channels,) or std_D.shape != (channels,):
        raise ConfigError(f"statistics of shapes {mean_D.shape} and {std_D.shape}; expected ({channels},): one value per channel")
    # A channel without variance carries nothing; division by rounding noise would make it the loudest channel.
    std_D = np.where(std_D > 1e-6 * std_D.max(), std_D, 1.0)
    folded, start = [], 0
    for q, table_KD in enumerate(stored):
        span = slice(start, start + widths[q]) if concat else slice(None)
        centre_D = mean_D[span] if concat or q == 0 else 0.0
        folded.append(torch.from_numpy(((table_KD - centre_D) / std_D[span]).astype(np.float32)))
        start += widths[q]
    return folded
