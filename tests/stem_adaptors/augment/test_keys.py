"""Keyed random numbers: the hash against Python integers, what they depend on, and their distribution."""

from __future__ import annotations

import hashlib
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenshards.stem_adaptors.augment.keys import SampleKeys, normal_quantiles
from tokenshards.stem_adaptors.data.batch import Batch

POSITIONS = st.lists(st.integers(0, 2**40), min_size=1, max_size=6)
WORD = 0xFFFFFFFF


def mix(x: int, key: int = 0) -> int:
    """lowbias32 on Python integers."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & WORD
    x ^= key
    x = ((x ^ x >> 15) * 0x846CA68B) & WORD
    return x ^ x >> 16


def halves_of(text: str) -> list[int]:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")]


def words_of(seed: int, epoch: int, position: int, operation: str, count: int) -> list[int]:
    bases = [mix(mix(position & WORD ^ half) ^ position >> 32) for half in halves_of(f"{seed} {epoch}")]
    first, second = (mix(base ^ half) for base, half in zip(bases, halves_of(operation), strict=True))
    return [mix(i * 0x9E3779B9 & WORD ^ first, second) for i in range(count)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 10**6), POSITIONS, st.sampled_from(["a", "noise.value"]), st.integers(1, 9))
def test_words_are_those_of_plain_integers(seed: int, epoch: int, positions: list[int], operation: str, count: int) -> None:
    words_BN = SampleKeys(seed, epoch, torch.tensor(positions)).words(operation, count)
    assert words_BN.dtype == torch.int32
    expected = [words_of(seed, epoch, position, operation, count) for position in positions]
    assert (words_BN.long() & WORD).tolist() == expected


def test_numbers_are_functions_of_the_words() -> None:
    keys = SampleKeys(1, 2, torch.tensor([0, 5, 2**33]))
    words = np.array([words_of(1, 2, position, "x", 8) for position in (0, 5, 2**33)])
    np.testing.assert_array_equal(keys.uniform("x", 8).numpy(), ((words >> 8) / 2**24).astype(np.float32))
    np.testing.assert_array_equal(keys.integers("x", 1000, 8).numpy(), words * 1000 >> 32)
    highs = torch.tensor([[1], [7], [2**31 - 1]])
    np.testing.assert_array_equal(keys.integers("x", highs, 8).numpy(), words * highs.numpy() >> 32)
    table = normal_quantiles(torch.device("cpu")).numpy()
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(3, 16)
    np.testing.assert_array_equal(keys.normal("x", 15).numpy(), table[halves[:, :15]])


def test_normal_quantiles_are_those_of_the_standard_library() -> None:
    table = normal_quantiles(torch.device("cpu")).double()
    exact = statistics.NormalDist()
    for index in (0, 1, 100, 32767, 32768, 65000, 65535):
        assert table[index].item() == pytest.approx(exact.inv_cdf((index + 0.5) / 65536), rel=2e-4)
    assert abs(table.mean().item()) < 1e-7
    assert table.square().mean().item() == pytest.approx(1, abs=1e-6)


def test_numbers_depend_on_seed_epoch_position_operation_and_nothing_else() -> None:
    positions = torch.arange(10)
    base = SampleKeys(0, 0, positions).words("a", 6)
    for other in (SampleKeys(1, 0, positions), SampleKeys(0, 1, positions), SampleKeys(0, 0, positions + 10)):
        assert not (other.words("a", 6) == base).any()
    assert not (SampleKeys(0, 0, positions).words("b", 6) == base).any()
    order = torch.tensor([7, 2, 2, 9])
    assert torch.equal(SampleKeys(0, 0, positions)[order].words("a", 6), base[order])
    assert torch.equal(SampleKeys(0, 0, positions)[3:5].words("a", 6), base[3:5])
    assert torch.equal(SampleKeys(0, 0, positions).words("a", 4), base[:, :4])


def test_keys_of_a_batch() -> None:
    positions = torch.tensor([4, 8])
    batch = Batch(torch.zeros(2, 3, 1, dtype=torch.uint8), positions, torch.ones(2), positions, positions, epoch=5, seed=6)
    keys = SampleKeys.from_batch(batch)
    assert (keys.seed, keys.epoch, len(keys)) == (6, 5, 2)
    assert torch.equal(keys.words("a", 2), SampleKeys(6, 5, positions).words("a", 2))


def test_numbers_are_even_and_independent() -> None:
    keys = SampleKeys(0, 0, torch.arange(512))
    words = keys.words("a", 512).numpy().view(np.uint32)
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> shift & 0xFF).ravel(), minlength=256)
        chi2 = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert 160 < chi2 < 370, "255 degrees of freedom, five standard deviations"
    assert len(np.unique(words)) > 0.99995 * words.size, "as many collisions as chance gives"
    uniform = keys.uniform("a", 512).double().numpy() - 0.5
    limit = 5 / 512
    assert abs(np.corrcoef(uniform[:-1].ravel(), uniform[1:].ravel())[0, 1]) < limit, "neighbouring positions"
    assert abs(np.corrcoef(uniform[:, :-1].ravel(), uniform[:, 1:].ravel())[0, 1]) < limit, "neighbouring numbers"
    assert abs(np.corrcoef(uniform.ravel(), keys.uniform("b", 512).numpy().ravel())[0, 1]) < limit, "operations"
    normal = keys.normal("a", 512).double()
    assert abs(normal.mean().item()) < limit
    assert normal.std().item() == pytest.approx(1, abs=limit)
    assert normal.pow(4).mean().item() == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_the_share_of_chosen_samples_is_the_one_asked_for(share: float) -> None:
    found = SampleKeys(2, 0, torch.arange(20_000)).chosen("op", share).float().mean().item()
    assert found == pytest.approx(share, abs=5 * (share * (1 - share) / 20_000) ** 0.5)
