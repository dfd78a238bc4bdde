"""The networks of TokenAdapt against slow references from the formula, on a non-square grid and on several levels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.stem_adaptors.augment.layouts import grid, ids_of, keys_of, sequence, spec_of, tables_of
from tokenshards.pipeline.errors import ConfigError
from tokenshards.stem_adaptors.augment.adapt_maps import MapRanges, random_maps, sampled, window_maps
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter, sin_cos_positions
from tokenshards.stem_adaptors.augment.adapt_published import adapter_of_published, published_names
from tokenshards.stem_adaptors.augment.adapt_sizes import AdaptSizes
from tokenshards.stem_adaptors.augment.adapt_start import start_from_codes, start_with_mirror
from tokenshards.stem_adaptors.augment.quantise import NearestCodes

LAYOUTS = {"grid": grid(6, 10), "residual": grid(6, 10, 2), "concat": grid(6, 10, 2, combine="concat")}


def adapter_for(layout: Any, *, skip: bool = False, out: tuple[int, int] = (4, 8)) -> tuple[TokenAdapter, Any, Any]:
    spec = spec_of(layout)
    torch.manual_seed(0)
    sizes = AdaptSizes(out_grid=out, width=16, heads=1, hidden=24, skip=skip, tables=skip, reach=int(skip))
    return TokenAdapter(spec, tables_of(spec), sizes), spec, tables_of(spec)


def norm(x: np.ndarray, state: dict[str, Any], name: str) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def slow_block(x_LE: np.ndarray, state: dict[str, Any], part: str) -> np.ndarray:
    y = norm(x_LE, state, f"{part}.block.norm1")
    q, k, v = np.split(y @ state[f"{part}.block.qkv.weight"].T, 3, axis=1)
    weights = np.exp(q @ k.T / math.sqrt(64))
    x_LE = x_LE + (weights / weights.sum(1, keepdims=True) @ v) @ state[f"{part}.block.out.weight"].T + state[f"{part}.block.out.bias"]
    y = norm(x_LE, state, f"{part}.block.norm2")
    y = np.tanh(y @ state[f"{part}.block.fc1.weight"].T + state[f"{part}.block.fc1.bias"])
    return x_LE + y @ state[f"{part}.block.fc2.weight"].T + state[f"{part}.block.fc2.bias"]


def slow_positions(rows: int, columns: int, width: int) -> np.ndarray:
    found = np.zeros((rows * columns, width))
    for row in range(rows):
        for column in range(columns):
            for half, place in enumerate((column, row)):
                for k in range(width // 4):
                    angle = place * 10000 ** (-k / (width / 4))
                    found[row * columns + column, half * width // 2 + k] = math.sin(angle)
                    found[row * columns + column, half * width // 2 + width // 4 + k] = math.cos(angle)
    return found


def slow_nearest(map_23: np.ndarray, row: int, column: int) -> int:
    """Return the site of the 6 x 10 grid whose square holds the middle of a place of the 4 x 8 window; -1 outside."""
    x, y = map_23 @ [(2 * column + 1) / 8 - 1, (2 * row + 1) / 4 - 1, 1]
    from_row, from_column = math.floor((y + 1) / 2 * 6), math.floor((x + 1) / 2 * 10)
    return from_row * 10 + from_column if 0 <= from_row < 6 and 0 <= from_column < 10 else -1


def slow_windows(cells_DHW: np.ndarray, around: int) -> np.ndarray:
    """Return [h * w, D * k * k]: for each site its 2 x 2 cells and so many more on each side, zeros outside."""
    padded = np.pad(cells_DHW, ((0, 0), (around, around), (around, around)))
    rows, columns, side = cells_DHW.shape[1] // 2, cells_DHW.shape[2] // 2, 2 + 2 * around
    places = [(2 * row, 2 * column) for row in range(rows) for column in range(columns)]
    return np.stack([padded[:, top : top + side, left : left + side].ravel() for top, left in places])


def test_positions() -> None:
    np.testing.assert_allclose(sin_cos_positions((3, 5), 12).numpy(), slow_positions(3, 5, 12), atol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_both_networks_equal_the_formula(name: str, skip: bool) -> None:
    adapter, spec, tables = adapter_for(LAYOUTS[name], skip=skip)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {key: value.double().numpy() for key, value in adapter.state_dict().items()}
    ids_BLQ = ids_of(spec, 2).int()
    parts = [tables[f"level_{q}"][ids_BLQ[..., q].numpy()] for q in range(len(spec.vocabulary))]
    vectors_BLD = np.concatenate(parts, -1) if spec.layout.combine == "concat" else sum(parts)
    cells = adapter.convert(ids_BLQ)
    assert cells.shape == (2, vectors_BLD.shape[-1], 12, 20)
    for sample in range(2):
        x = slow_positions(6, 10, 16) + vectors_BLD[sample] @ state["conversion.enter.weight"].T + state["conversion.enter.bias"]
        x = norm(slow_block(x, state, "conversion"), state, "conversion.norm")
        for row in range(12):
            for column in range(20):
                site = row // 2 * 10 + column // 2
                own = state["conversion.leave.weight"][:, :, row % 2, column % 2]
                expected = x[site] @ own + state["conversion.leave.bias"]
                if skip:
                    beside = state["conversion.beside.weight"][:, :, row % 2, column % 2]
                    expected = expected + vectors_BLD[sample, site] @ beside + state["conversion.beside.bias"]
                np.testing.assert_allclose(cells[sample, :, row, column].detach().numpy(), expected, atol=1e-4)
    maps_B23 = random_maps(keys_of(2), MapRanges(), (6, 10))
    known_BNQ = ids_BLQ[:, :32]
    logits = adapter(ids_BLQ, maps_B23, known_BNQ)
    windows_B23 = window_maps(maps_B23, (6, 10), (4, 8))
    moved = sampled(cells, windows_B23, (8, 16)).detach().double().numpy()
    for sample in range(2):
        fours = moved[sample].reshape(-1, 4, 2, 8, 2).transpose(1, 3, 0, 2, 4).reshape(32, -1)
        x = slow_positions(4, 8, 16) + slow_windows(moved[sample], 2 if skip else 0) @ state["reverse.enter.weight"].reshape(16, -1).T
        x = x + state["reverse.enter.bias"]
        turn = windows_B23[sample, :, :2].double().numpy()
        scale = math.sqrt(abs(np.linalg.det(turn)))
        features = np.array([1, *(turn / scale).flatten(), scale])
        x = x + features @ state["reverse.map.weight"].T if skip else x
        x = norm(slow_block(x, state, "reverse"), state, "reverse.norm")
        if skip:
            wide = fours @ state["reverse.beside.weight"].reshape(6 * moved.shape[1], -1).T + state["reverse.beside.bias"]
            x = np.concatenate([x, np.einsum("nfd,f->nd", wide.reshape(32, 6, -1), features)], 1)
        for level, found in enumerate(logits):
            own = x
            if level:
                before = tables["level_0"][known_BNQ[sample, :, 0].numpy()]
                padded = np.pad(before, ((0, 0), (0, vectors_BLD.shape[-1] - before.shape[1])))
                own = x + padded @ state["reverse.before.weight"].T
            expected = own[:, :16] @ state[f"reverse.heads.{level}.weight"].T + state[f"reverse.heads.{level}.bias"]
            if skip:
                sharp = math.exp(features @ state["reverse.sharpness.weight"][level])
                expected = expected + sharp * (own[:, 16:] @ state[f"reverse.beside_heads.{level}.weight"].T)
            for place in range(32) if skip else ():
                site = slow_nearest(windows_B23[sample].double().numpy(), place // 8, place % 8)
                if site >= 0:
                    row = int(ids_BLQ[sample, site, level]) + (23 if np.linalg.det(turn) < 0 else 0)
                    expected[place] += state[f"reverse.tables.{level}.weight"][row]
            assert found.shape == (2, 32, 23)
            np.testing.assert_allclose(found[sample].detach().numpy(), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_are_the_most_probable_after_those_before(name: str) -> None:
    adapter, spec, _ = adapter_for(LAYOUTS[name], skip=True)
    torch.nn.init.normal_(adapter.heads[0].weight)
    ids_BLQ, maps_B23 = ids_of(spec, 3).int(), random_maps(keys_of(3), MapRanges(), (6, 10))
    found_BNQ = adapter.ids(ids_BLQ, maps_B23)
    assert found_BNQ.shape == (3, 32, len(spec.vocabulary)) and found_BNQ.dtype == ids_BLQ.dtype
    logits = adapter(ids_BLQ, maps_B23, found_BNQ)
    assert torch.equal(found_BNQ.long(), torch.stack([part.argmax(-1) for part in logits], -1))


@pytest.mark.parametrize("skip", [False, True])
def test_every_weight_gets_a_gradient(skip: bool) -> None:
    adapter, spec, _ = adapter_for(LAYOUTS["residual"], skip=skip)
    logits = adapter(ids_of(spec, 2).int(), random_maps(keys_of(2), MapRanges(), (6, 10)), ids_of(spec, 2)[:, :32].int())
    sum(part.float().logsumexp(-1).mean() for part in logits).backward()  # type: ignore[union-attr]
    assert [name for name, weight in adapter.named_parameters() if weight.grad is None or not weight.grad.abs().sum()] == []


def test_a_file_of_version_1_gives_the_same_networks() -> None:
    """Its heads hold the matrix of the code vectors too."""
    spec = spec_of(LAYOUTS["residual"])
    adapter = TokenAdapter(spec, tables_of(spec), AdaptSizes(out_grid=(4, 8), width=16, heads=1, hidden=24, skip=True))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = dict(adapter.state_dict())
    for level in range(2):
        parts = weights[f"reverse.heads.{level}.weight"], weights.pop(f"reverse.beside_heads.{level}.weight")
        weights[f"reverse.heads.{level}.weight"] = torch.cat(parts, dim=1)
    again = TokenAdapter(spec, tables_of(spec), adapter.sizes)
    again.load(weights, "weights.safetensors")
    assert all(torch.equal(tensor, adapter.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_a_large_vocabulary_has_no_table() -> None:
    spec = spec_of(grid(4, 4), codes=1025)
    adapter = TokenAdapter(spec, tables_of(spec), AdaptSizes(out_grid=(4, 4), width=16, heads=1, hidden=24, skip=True, tables=True))
    assert not [name for name in adapter.state_dict() if "tables" in name]
    assert adapter.ids(ids_of(spec, 2).int(), random_maps(keys_of(2), MapRanges(), (4, 4))).shape == (2, 16, 1)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_fit_begins_with_the_nearest_codes(name: str, metric: str) -> None:
    """Before the first step the ids are those of the code nearest to the moved code vectors."""
    spec = spec_of(LAYOUTS[name], metric=metric)
    tables = tables_of(spec)
    adapter = TokenAdapter(spec, tables, AdaptSizes(out_grid=(4, 8), width=16, heads=1, hidden=24, skip=True))
    ids_BLQ = ids_of(spec, 4).int()
    start_from_codes(adapter, adapter.vectors(ids_BLQ).flatten(0, 1))
    mirrored_B23 = torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(4, -1, -1)
    x_BDHW = adapter.vectors(ids_BLQ).transpose(1, 2).unflatten(2, (6, 10)).flip(-1)[..., 1:5, 1:9]
    if metric == "cosine" and name == "residual":
        return  # cosine compares what is left by its direction, which no linear head does
    assert torch.equal(adapter.ids(ids_BLQ, mirrored_B23), NearestCodes(spec, tables)(x_BDHW.flatten(2).transpose(1, 2)))


def test_a_fit_begins_with_mirrored_codes_in_a_mirror() -> None:
    """Each code has a partner whose channels are swapped: that of the mirrored patch. Upright images keep their codes."""
    spec = spec_of(grid(6, 10), codes=40)
    half_KD = tables_of(spec)["level_0"][:20]
    tables = {"level_0": np.concatenate([half_KD, half_KD[:, [1, 0, 3, 2]]])}
    adapter = TokenAdapter(spec, tables, AdaptSizes(out_grid=(6, 10), width=16, heads=1, hidden=24, skip=True))
    ids_BLQ = ids_of(spec, 12).int()
    mirrored_BLQ = ((ids_BLQ + 20) % 40).view(12, 6, 10, 1).flip(2).reshape(12, 60, 1)
    start_from_codes(adapter, adapter.vectors(ids_BLQ).flatten(0, 1))
    start_with_mirror(adapter, ids_BLQ, mirrored_BLQ)
    upright_B23 = torch.eye(2, 3).expand(12, -1, -1)
    assert torch.equal(adapter.ids(ids_BLQ, upright_B23), ids_BLQ)
    assert torch.equal(adapter.ids(ids_BLQ, upright_B23 * torch.tensor([[-1.0], [1.0]])), mirrored_BLQ)


def test_published_weights_load_under_their_names() -> None:
    """A file with the published names and shapes: no real one is at hand."""
    adapter, spec, tables = adapter_for(LAYOUTS["grid"], out=(3, 5))
    names = published_names(adapter)
    state = {names[name]: torch.randn(tensor.shape) for name, tensor in adapter.state_dict().items()}
    for name in ("conversion_function.1.de_pos_embedding", "reverse_transform.0.en_pos_embedding"):
        state[name] = state[name][None]
    inner = {"to_qkv.weight": (192, 16), "to_out.weight": (16, 64), "to_out.bias": (16,), "net.0.weight": (24, 16), "net.2.bias": (16,)}
    assert {state[f"conversion_function.1.transformer.layers.0.{0 if 'to_' in key else 1}.fn.{key}"].shape for key in inner} == set(
        inner.values()
    )
    assert state["conversion_function.1.to_pixel.1.weight"].shape == (16, 4, 2, 2) and len(state) == 36
    loaded = adapter_of_published(state, spec, tables, "tokenadapt.ckpt")
    assert loaded.sizes == AdaptSizes(out_grid=(3, 5), width=16, heads=1, hidden=24) and not loaded.training
    found = loaded.state_dict()
    assert all(torch.equal(found[own].flatten(), state[theirs].flatten()) for own, theirs in names.items())
    for change, said in (
        ({"reverse_transform.1.bias": None}, "reverse_transform.1.bias is missing"),
        ({"conversion_function.0.bias": torch.zeros(3)}, r"conversion_function.0.bias has shape \(3,\), expected \(16,\)"),
        ({"reverse_transform.2.bias": torch.zeros(3)}, "reverse_transform.2.bias is of no use"),
        ({"reverse_transform.0.en_pos_embedding": torch.zeros(1, 7, 16)}, "its result has 7 sites"),
        ({"conversion_function.0.weight": None}, "conversion_function.0.weight is missing"),
    ):
        wrong: dict[str, Tensor] = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        with pytest.raises(ConfigError, match=said):
            adapter_of_published(wrong, spec, tables, "tokenadapt.ckpt")
    with pytest.raises(ConfigError, match="one id per site; the tokenizer has 2"):
        adapter_of_published(state, spec_of(LAYOUTS["residual"]), tables, "tokenadapt.ckpt")


def test_layouts_without_a_grid_and_sizes_that_do_not_fit_are_refused() -> None:
    spec = spec_of(sequence(20))
    with pytest.raises(ConfigError, match="kind 'sequence'; expected a grid"):
        TokenAdapter(spec, tables_of(spec), AdaptSizes(out_grid=(4, 4), width=16))
    spec = spec_of(grid(6, 6))
    with pytest.raises(ConfigError, match=r"\(8, 6\) sites of a grid of \(6, 6\)"):
        TokenAdapter(spec, tables_of(spec), AdaptSizes(out_grid=(8, 6), width=16))
    with pytest.raises(ConfigError, match="width is 18; expected a multiple of 4"):
        AdaptSizes(out_grid=(8, 6), width=18)
