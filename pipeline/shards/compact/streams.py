"""Rows of ids as byte streams and back, a batch of rows of one shape at a time: the decoder that needs nothing but numpy.

A stream is one state of range ANS (Duda 2013, arXiv 1311.2540) that is written first, in as few bytes as hold it, and 16-bit words that
fill it up again. The state ends at 1 with all words used, or the stream is damaged.

Shapes: B rows, T ids of a row in coding order, N slots, J digits, H hidden numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tokenshards.pipeline.shards.compact.contexts import Contexts
from tokenshards.pipeline.shards.compact.model import CHANCE_BITS, CompactModel, LevelModel, cumulative, node_starts

__all__ = ["LEAST", "beginnings", "codes_of_paths", "damaged", "decode_rows", "encode_rows", "ideal_bits", "require_beginnings", "slot_ids"]

LEAST = 1 << 16
"""Below this state the decoder reads a word."""


def slot_ids(ids_BT: npt.NDArray[np.int64], earlier_TN: npt.NDArray[np.int32], count: int, sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return [B, T, count], the ids of the first `count` slots; outside of the row the number of codes, of which `sizes` has one a slot."""
    found_BTN = ids_BT[:, np.maximum(earlier_TN[:, :count], 0)]
    return np.where(earlier_TN[:, :count] < 0, np.array(sizes, np.int64), found_BTN)


def _intervals(model: CompactModel, contexts: Contexts, ids_BT: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint32], ...]:
    """Return where the share of each digit begins and how large it is: uint32 [B, S] in coding order, S digits of a row."""
    starts, shares = [], []
    for number, level in enumerate(model.levels):
        own_T = np.flatnonzero(contexts.levels_T == number)
        slots_BTN = slot_ids(ids_BT, contexts.earlier_TN[own_T], len(level.slots), level.sizes)
        rows = len(ids_BT) * len(own_T)
        bases_RH = np.broadcast_to(level.bases_BH[contexts.bases_T[own_T]], (len(ids_BT), len(own_T), level.bases_BH.shape[1]))
        hidden_RH = level.hidden(slots_BTN.reshape(rows, -1), bases_RH.reshape(rows, -1))
        path_R = level.paths_K[ids_BT[:, own_T].ravel()].astype(np.int64)
        first, digits = node_starts(level.digits), level.digits
        own_starts, own_shares = [], []
        for digit in range(digits):
            down = 3 * (digits - digit - 1)
            before_R, branch_R = path_R >> down + 3, path_R >> down & 7
            edges_R9 = cumulative(level.scores(hidden_RH, first[digit] + before_R), level.down)
            begin_R = np.take_along_axis(edges_R9, branch_R[:, None], 1)[:, 0]
            own_starts.append(begin_R)
            own_shares.append(np.take_along_axis(edges_R9, branch_R[:, None] + 1, 1)[:, 0] - begin_R)
        shape = len(ids_BT), len(own_T) * digits
        starts.append(np.stack(own_starts, 1).reshape(shape).astype(np.uint32))
        shares.append(np.stack(own_shares, 1).reshape(shape).astype(np.uint32))
    return np.concatenate(starts, 1), np.concatenate(shares, 1)


def ideal_bits(model: CompactModel, contexts: Contexts, ids_BT: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return float64 [B], the information of each row under the model."""
    _, shares_BS = _intervals(model, contexts, ids_BT)
    bits_B: npt.NDArray[np.float64] = (CHANCE_BITS - np.log2(shares_BS.astype(np.float64))).sum(axis=1)
    return bits_B


def encode_rows(model: CompactModel, contexts: Contexts, ids_BT: npt.NDArray[np.int64]) -> list[bytes]:
    """Return the stream of each row."""
    starts_BS, shares_BS = _intervals(model, contexts, ids_BT)
    rows, steps = starts_BS.shape
    state_B = np.ones(rows, np.uint64)
    words_BS, used_B = np.zeros((rows, steps), "<u2"), np.full(rows, steps)
    for step in range(steps - 1, -1, -1):
        share_B, start_B = shares_BS[:, step].astype(np.uint64), starts_BS[:, step].astype(np.uint64)
        full_B = state_B >= share_B << np.uint64(17)
        used_B -= full_B
        rows_full = np.flatnonzero(full_B)
        words_BS[rows_full, used_B[rows_full]] = (state_B[rows_full] & np.uint64(0xFFFF)).astype("<u2")
        state_B[rows_full] >>= np.uint64(16)
        state_B = (state_B // share_B << np.uint64(CHANCE_BITS)) + state_B % share_B + start_B
    states = [int(state) for state in state_B]
    return [
        state.to_bytes((state.bit_length() + 7) // 8, "big") + words_BS[row, used_B[row] :].tobytes() for row, state in enumerate(states)
    ]


def decode_rows(
    model: CompactModel, contexts: Contexts, streams: Sequence[bytes], numbers: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Return the ids [B, T] of streams; raises ValueError naming the first row that is damaged, by its own number or that in `numbers`."""
    rows, total = len(streams), len(contexts.levels_T)
    state_B, words_BW, counts_B = beginnings(streams, numbers)
    next_B, every_B = np.zeros(rows, np.int64), np.arange(rows)
    ids_BT = np.zeros((rows, total), np.int64)
    wrong_B = np.zeros(rows, bool)
    codes = [codes_of_paths(level) for level in model.levels]
    for place in range(total):
        number = int(contexts.levels_T[place])
        level = model.levels[number]
        slots_BN = slot_ids(ids_BT, contexts.earlier_TN[place : place + 1], len(level.slots), level.sizes)[:, 0]
        hidden_BH = level.hidden(slots_BN, level.bases_BH[contexts.bases_T[place]])
        path_B, first = np.zeros(rows, np.int64), node_starts(level.digits)
        for digit in range(level.digits):
            edges_B9 = cumulative(level.scores(hidden_BH, first[digit] + path_B), level.down)
            low_B = state_B & ((1 << CHANCE_BITS) - 1)
            branch_B = (edges_B9[:, 1:] <= low_B[:, None]).sum(axis=1)
            begin_B = edges_B9[every_B, branch_B]
            state_B = (edges_B9[every_B, branch_B + 1] - begin_B) * (state_B >> CHANCE_BITS) + low_B - begin_B
            reads_B = (state_B < LEAST) & (next_B < counts_B)
            state_B = np.where(reads_B, state_B << 16 | words_BW[every_B, next_B], state_B)
            next_B += reads_B
            path_B = path_B << 3 | branch_B
        code_B = codes[number][path_B]
        wrong_B |= code_B < 0
        ids_BT[:, place] = np.maximum(code_B, 0)
    wrong_B |= (state_B != 1) | (next_B != counts_B)
    if wrong_B.any():
        raise damaged(int(wrong_B.argmax()), total, numbers)
    return ids_BT


def beginnings(
    streams: Sequence[bytes], numbers: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first state of each stream [B], its words [B, W] with at least one 0 behind them, and how many it has [B]."""
    require_beginnings(streams, numbers)
    heads = [len(stream) if len(stream) <= 4 else 4 - len(stream) % 2 for stream in streams]
    state_B = np.array([int.from_bytes(stream[:head], "big") for stream, head in zip(streams, heads, strict=True)], np.int64)
    counts_B = np.array([(len(stream) - head) // 2 for stream, head in zip(streams, heads, strict=True)], np.int64)
    words_BW = np.zeros((len(streams), int(counts_B.max(initial=0)) + 1), np.int64)
    for row, (stream, head) in enumerate(zip(streams, heads, strict=True)):
        words_BW[row, : counts_B[row]] = np.frombuffer(stream, "<u2", offset=head)
    return state_B, words_BW, counts_B


def damaged(row: int, total: int, numbers: npt.NDArray[np.int64] | None) -> ValueError:
    """Return what to raise for a stream that does not hold so many ids."""
    row = row if numbers is None else int(numbers[row])
    return ValueError(f"row {row}: its stream does not end as one of {total:,} ids does; it is damaged")


def require_beginnings(streams: Sequence[bytes], numbers: npt.NDArray[np.int64] | None) -> None:
    """Raise ValueError for a stream that is empty or begins with a zero, as none does."""
    for row, stream in enumerate(streams):
        if not stream or stream[0] == 0:
            row = row if numbers is None else int(numbers[row])
            raise ValueError(f"row {row}: its stream begins with {stream[:4].hex() or 'nothing'}; expected a byte that is not 0")


def codes_of_paths(level: LevelModel) -> npt.NDArray[np.int64]:
    """Return the id of each path, -1 where no id has it."""
    found = np.full(8**level.digits, -1, np.int64)
    found[level.paths_K] = np.arange(level.codes)
    return found
