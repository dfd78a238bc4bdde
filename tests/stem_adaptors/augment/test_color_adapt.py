"""ColorAdapt in a transform, against a loop written from its formula: C(z1, z2) = sd2 (z1 - mean1) / sd1 + mean2 for each channel."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.stem_adaptors.augment.layouts import batch_at, grid, ids_of, keys_of, pyramid, sequence, spec_of, tables_of, video
from tests.stem_adaptors.augment.test_transform import OFF, embedded, transform_of
from tokenshards.pipeline.shards.spec import Layout
from tokenshards.stem_adaptors.augment import embed_ops

COLOUR = dataclasses.replace(OFF, coloradapt_prob=0.6, mix_group=4)
LAYOUTS = [grid(5, 7), grid(6, 4, 2), video(3, 4, 5), pyramid((1, 1), (3, 3)), sequence(11)]
SAMPLES, GROUPS = 8, 2


def vectors_of(layout: Layout, ids_BLQ: torch.Tensor) -> list[list[list[float]]]:
    """The embedding of each sample, site and channel: the sum over levels of the code vectors."""
    tables = tables_of(spec_of(layout))
    return [
        [sum(tables[f"level_{q}"].astype("float64")[code] for q, code in enumerate(site)).tolist() for site in sample]  # type: ignore[union-attr]
        for sample in ids_BLQ.tolist()
    ]


def adapted(own: list[list[float]], other: list[list[float]]) -> torch.Tensor:
    """float64 [sites, channels]"""
    sites, columns = len(own), []
    for channel in range(len(own[0])):
        values, others = [site[channel] for site in own], [site[channel] for site in other]
        mean, mean_2 = sum(values) / sites, sum(others) / sites
        sd = (sum((value - mean) ** 2 for value in values) / (sites - 1)) ** 0.5
        sd_2 = (sum((value - mean_2) ** 2 for value in others) / (sites - 1)) ** 0.5
        columns.append([sd_2 * (value - mean) / (sd + embed_ops.COLOUR_EPSILON) + mean_2 for value in values])
    return torch.tensor(columns, dtype=torch.float64).T


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind}-{layout.grid or layout.sites}-{layout.ids_per_site}")
def test_samples_take_the_statistics_of_the_mirrored_place_of_their_mix_group(layout: Layout) -> None:
    spec, keys = spec_of(layout), keys_of(SAMPLES)
    ids_BLQ = ids_of(spec, SAMPLES)
    found = transform_of(spec, COLOUR).state(embedded(spec), batch_at(ids_BLQ, keys)).embeddings
    rows_BLD = found.flatten(2).transpose(1, 2).double()
    vectors = vectors_of(layout, ids_BLQ)
    hits = [float(draw) < 0.6 for draw in keys.uniform("noise")[:, 0]]
    assert 0 < sum(hits) < SAMPLES
    for sample, hit in enumerate(hits):
        group, place = sample % GROUPS, sample // GROUPS
        other = vectors[(SAMPLES // GROUPS - 1 - place) * GROUPS + group]
        own = torch.tensor(vectors[sample], dtype=torch.float64)
        expected = adapted(vectors[sample], other) if hit else own
        torch.testing.assert_close(rows_BLD[sample], expected, rtol=0, atol=2e-5)
        assert not hit or (expected - own).abs().max() > 0.01


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind}-{layout.grid or layout.sites}-{layout.ids_per_site}")
def test_an_image_of_one_token_takes_and_gives_finite_values(layout: Layout) -> None:
    """The standard deviation of such an image is 0 in every channel, which the reference divides by."""
    spec = spec_of(layout)
    ids_BLQ = ids_of(spec, 2)
    ids_BLQ[0] = ids_BLQ[0, :1]
    transform = transform_of(spec, dataclasses.replace(OFF, coloradapt_prob=1.0, mix_group=2))
    plain, other = torch.tensor(vectors_of(layout, ids_BLQ)).float()
    found = transform.state(embedded(spec), batch_at(ids_BLQ, keys_of(2))).embeddings.flatten(2).transpose(1, 2)
    assert found.isfinite().all()
    # A mean over sites is rounded, by less than 1e-6, and the quotient by epsilon makes at most a tenth of it.
    torch.testing.assert_close(found[0], other.mean(0).expand_as(other), rtol=0, atol=0.2)
    torch.testing.assert_close(found[1], plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("draws", [3, 4])
def test_a_sample_never_gets_noise_and_colour(draws: int) -> None:
    count = 400
    spec, keys = spec_of(grid(4, 6)), keys_of(count)
    batch = batch_at(ids_of(spec, count), keys)
    rates = ((0.0, 0.0), (0.3, 0.0), (0.3, 0.3))
    configs = [dataclasses.replace(OFF, mix_group=4, noise_prob=noise, coloradapt_prob=colour) for noise, colour in rates]
    plain, noisy, mixed = (transform_of(spec, config, draws=draws).state(embedded(spec), batch).embeddings for config in configs)
    # In the formula the partner has no noise; runs of the third version keep the statistics that it has after its noise.
    coloured = embed_ops.adapt_colour_((noisy if draws == 3 else plain).clone(), None, count // 4)
    kinds = {"noise": 0, "colour": 0, "neither": 0}
    for sample, draw in enumerate(keys.uniform("noise")[:, 0].tolist()):
        kind, expected = ("noise", noisy) if draw < 0.3 else ("colour", coloured) if draw < 0.6 else ("neither", plain)
        torch.testing.assert_close(mixed[sample], expected[sample], rtol=0, atol=1e-6)
        kinds[kind] += 1
    assert min(kinds.values()) > 80
