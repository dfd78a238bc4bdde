"""The decoder of `streams` in torch: all rows of a batch step by step on one device, such as a GPU. The ids are the same.

A step is some dozen operations whatever the number of rows, so that only large batches are fast. All of it is integer arithmetic, which no
device rounds.

Shapes: B rows, T ids of a row in coding order, N slots, R rows of all tables of a level, H hidden numbers, V nodes, P paths, W words.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.shards.compact.code_tree import BRANCHES
from tokenshards.pipeline.shards.compact.contexts import Contexts
from tokenshards.pipeline.shards.compact.model import CHANCE_BITS, MOST_HIDDEN, NO_CHANCE, SHIFT, CompactModel, node_starts, weight_table
from tokenshards.pipeline.shards.compact.processor import DECODE_DEVICE
from tokenshards.pipeline.shards.compact.streams import LEAST, beginnings, codes_of_paths, damaged

__all__ = ["TorchDecoder", "decoder_on"]


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """The integers of a level on a device."""

    sizes_N1: Tensor
    starts_N1: Tensor
    tables_RH: Tensor
    bases_BH: Tensor
    weights_V8H: Tensor
    biases_V8: Tensor
    codes_P: Tensor
    first: list[int]
    down: int


@functools.lru_cache(maxsize=8)
def _levels(model: CompactModel, device: torch.device) -> tuple[_Level, ...]:
    def there(array: npt.NDArray[np.generic], dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, dtype)

    return tuple(
        _Level(
            sizes_N1=there(np.array(level.sizes, np.int64)[:, None], torch.int64),
            starts_N1=there(level.starts[:, None], torch.int64),
            tables_RH=there(level.tables_RH, torch.int32),
            bases_BH=there(level.bases_BH, torch.int32),
            weights_V8H=there(level.weights_V8H, torch.int32),
            biases_V8=there(level.biases_V8, torch.int32),
            codes_P=there(codes_of_paths(level), torch.int64),
            first=node_starts(level.digits),
            down=level.down,
        )
        for level in model.levels
    )


@dataclass(frozen=True, slots=True)
class TorchDecoder:
    """Decodes on one device."""

    device: torch.device

    @torch.inference_mode()
    def __call__(
        self, model: CompactModel, contexts: Contexts, streams: Sequence[bytes], numbers: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """Do what `streams.decode_rows` does."""
        device, rows, total = self.device, len(streams), len(contexts.levels_T)
        state_B, words_BW, counts_B = (torch.from_numpy(part).to(device) for part in beginnings(streams, numbers))
        earlier_TN = torch.from_numpy(contexts.earlier_TN).to(device, torch.int64)
        steps_9 = torch.arange(BRANCHES + 1, device=device)
        weights = torch.from_numpy(weight_table()).to(device)
        levels, ids_TB = _levels(model, device), torch.zeros(total, rows, dtype=torch.int64, device=device)
        next_B, wrong_B = torch.zeros_like(state_B), torch.zeros_like(state_B, dtype=torch.bool)
        for place in range(total):
            level = levels[int(contexts.levels_T[place])]
            earlier_N1 = earlier_TN[place, : len(level.sizes_N1), None]
            slots_NB = torch.where(earlier_N1 < 0, level.sizes_N1, ids_TB[earlier_N1[:, 0].clamp(min=0)]) + level.starts_N1
            sums_BH = level.tables_RH[slots_NB].sum(0, dtype=torch.int32) + level.bases_BH[int(contexts.bases_T[place])]
            hidden_B1H = (sums_BH >> SHIFT).clamp(0, MOST_HIDDEN)[:, None]
            path_B = torch.zeros_like(state_B)
            for first in level.first[:-1]:
                nodes_B = first + path_B
                scores_B8 = (level.weights_V8H[nodes_B] * hidden_B1H).sum(-1, dtype=torch.int32) + level.biases_V8[nodes_B]
                distance_B8 = (scores_B8.amax(1, keepdim=True) - scores_B8 >> level.down).clamp(max=NO_CHANCE)
                sums_B8 = weights[distance_B8.long()].cumsum(1)
                inverse_B1 = ((1 << CHANCE_BITS) - BRANCHES << 16) // sums_B8[:, -1:]
                # The edges of all branches but the last, whose share ends at 2^15.
                edges_B8 = torch.nn.functional.pad(sums_B8[:, :-1] * inverse_B1 >> 16, (1, 0)) + steps_9[:-1]
                edges_B9 = torch.nn.functional.pad(edges_B8, (0, 1), value=1 << CHANCE_BITS)
                low_B1 = (state_B & ((1 << CHANCE_BITS) - 1))[:, None]
                branch_B1 = (edges_B9[:, 1:] <= low_B1).sum(1, keepdim=True)
                begin_B1 = edges_B9.gather(1, branch_B1)
                share_B1 = edges_B9.gather(1, branch_B1 + 1) - begin_B1
                state_B = (share_B1 * (state_B[:, None] >> CHANCE_BITS) + low_B1 - begin_B1)[:, 0]
                reads_B = (state_B < LEAST) & (next_B < counts_B)
                state_B = torch.where(reads_B, state_B << 16 | words_BW.gather(1, next_B[:, None])[:, 0], state_B)
                next_B = next_B + reads_B
                path_B = path_B << 3 | branch_B1[:, 0]
            code_B = level.codes_P[path_B]
            wrong_B |= code_B < 0
            ids_TB[place] = code_B.clamp(min=0)
        wrong_B |= (state_B != 1) | (next_B != counts_B)
        wrong = wrong_B.cpu().numpy()
        if wrong.any():
            raise damaged(int(wrong.argmax()), total, numbers)
        ids_BT: npt.NDArray[np.int64] = ids_TB.T.cpu().numpy()
        return ids_BT


def decoder_on(device: str) -> TorchDecoder:
    """Return the decoder on a device such as `cuda`; raises ConfigError where there is none."""
    return TorchDecoder(choose_device(device, option=f"${DECODE_DEVICE}"))
