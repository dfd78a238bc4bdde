"""A published checkpoint from its file to shards, images and a classifier, as a user would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.datasets import call_cli, call_json, content, image_size, run_cli, write_images
from tests.pipeline.tokenizers import titok_reference, vit_vqgan_reference
from tests.pipeline.tokenizers.published_states import table_from
from tests.pipeline.tokenizers.torchscript_programs import cosmos_files
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.tokenizers.registry import load_family, published_families

SIDE = 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-VQGAN in Lightning's wrapper, and One-D-Piece bare."""
    folder = tmp_path_factory.mktemp("weights")
    noise = torch.rand(40, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    vit = vit_vqgan_reference.random_state()
    table = table_from(vit_vqgan_reference.encode(vit, noise), 300)
    junk = {"loss.discriminator.weight": torch.ones(2)}
    torch.save({"state_dict": {**vit, "quantizer.embedding.weight": table, **junk}, "epoch": 1}, folder / "vit.ckpt")
    piece = titok_reference.random_state(legacy=True)
    table = table_from(titok_reference.encode(piece, noise, legacy=True), 30)
    torch.save({**piece, "quantize.embedding.weight": table}, folder / "piece.bin")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_images(folder, 30, side=SIDE)
    return folder


@pytest.fixture(scope="module")
def vit(weights: Path, photos: Path) -> Path:
    """A dataset in the codes that its own images use."""
    out = weights / "out"
    found = call_json(
        "import", "tokenizer", str(weights / "vit.ckpt"), str(weights / "tok"), "--kind", "vit-vqgan", "--keep-codes", str(photos)
    )
    kept = found["spec"]["config"]["kept_codes"]
    assert found["published_codes"] == 300 and 1 < len(kept) < 300 and kept == sorted(kept) and found["kept_share"] == 1.0
    assert found["spec"]["vocabulary"] == [len(kept)] and found["levels"][0]["dead_codes"] == 0
    run_cli("tokenize", str(photos), str(out), "--tokenizer", str(weights / "tok"), "--shard-rows", "8", "--workers", "2")
    return out


def test_kept_codes_are_the_published_ids_of_these_images(weights: Path, photos: Path, vit: Path) -> None:
    call_cli("import", "tokenizer", str(weights / "vit.ckpt"), str(weights / "whole"), "--kind", "vit-vqgan", "--no-decoder")
    call_cli("tokenize", str(photos), str(weights / "whole_out"), "--tokenizer", str(weights / "whole"), "--workers", "1")
    kept = np.array(json.loads((weights / "tok" / "tokenizer.json").read_text())["spec"]["config"]["kept_codes"])
    compact, whole = content(vit), content(weights / "whole_out")
    assert compact.keys() == whole.keys() and len(compact) == 30
    small, large = (open_dataset(str(out)).spec.id_dtype for out in (vit, weights / "whole_out"))
    for name, (label, ids) in compact.items():
        published = np.frombuffer(whole[name][1], large)
        assert label == whole[name][0] and np.array_equal(kept[np.frombuffer(ids, small)], published)


def test_it_verifies_shows_and_trains(photos: Path, vit: Path) -> None:
    assert "ok" in call_cli("verify", str(vit))[0]
    out, _ = call_cli("inspect", str(vit))
    assert "vit-vqgan" in out and "codes kept" in out and "of 300" in out
    call_cli("preview", str(vit), "--to", str(vit.parent / "look.png"), "-n", "4", "--source", str(photos))
    assert image_size(vit.parent / "look.png")[0] > 4 * SIDE
    model = [word for setting in ("model.width=16", "model.depth=1", "model.heads=2") for word in ("--set", setting)]
    call_cli("train", str(vit), "--out", str(vit.parent / "run"), "--epochs", "1", "--batch-size", "16", "--device", "cpu", *model)
    shown, _ = call_cli("predict", str(vit.parent / "run"), str(photos / "class_0"), "--json")
    assert len(shown.splitlines()) == 10


def test_a_short_sequence_goes_the_same_way(weights: Path, photos: Path) -> None:
    tok, out, run = str(weights / "piece.tok"), weights / "piece_out", str(weights / "piece_run")
    shown, _ = call_cli("import", "tokenizer", str(weights / "piece.bin"), tok, "--kind", "one-d-piece", "--max-tokens", "4")
    assert "one-d-piece" in shown and "short side and centre crop to 32 x 32 px, bicubic, values from 0 to 1" in shown
    assert "note" in shown and "it has 6 latents" in shown  # the published ones have 256
    run_cli("tokenize", str(photos), str(out), "--tokenizer", tok, "--shard-rows", "8", "--workers", "2")
    layout = open_dataset(str(out)).spec.layout
    assert (layout.kind, layout.sites, layout.ordered, layout.prefix_decodable) == ("sequence", 4, True, True)
    model = [word for setting in ("model.width=16", "model.depth=1", "model.heads=2") for word in ("--set", setting)]
    call_cli("train", str(out), "--out", run, "--epochs", "1", "--batch-size", "16", "--device", "cpu", *model)
    assert "top-1" in call_cli("evaluate", run, str(out))[0]


def test_an_exported_encoder_goes_the_same_way(photos: Path, tmp_path: Path) -> None:
    for name, data in zip(("encoder.jit", "decoder.jit"), cosmos_files(size=SIDE), strict=True):
        (tmp_path / name).write_bytes(data)
    tok, out, look = str(tmp_path / "di.tok"), str(tmp_path / "out"), tmp_path / "look.png"
    files = str(tmp_path / "encoder.jit"), tok, "--decoder-file", str(tmp_path / "decoder.jit")
    shown, _ = call_cli("import", "tokenizer", *files, "--kind", "torchscript", "--preset", "cosmos-di", "--size", str(SIDE))
    assert "64,000 codes" in shown and "values from -1 to 1" in shown and "bfloat16" in shown
    run_cli("tokenize", str(photos), out, "--tokenizer", tok, "--shard-rows", "8", "--workers", "2")
    dataset = open_dataset(out)
    assert (dataset.spec.vocabulary, dataset.spec.layout.grid, len(content(out))) == ((64000,), (4, 4), 30)
    assert "ok" in call_cli("verify", out)[0]
    call_cli("preview", out, "--to", str(look), "-n", "4", "--source", str(photos))
    assert image_size(look)[0] > 4 * SIDE
    plain = ["--kind", "torchscript", "--size", str(SIDE), "--dtype", "float32"]
    for words, expect, message in (
        (["--vocabulary", "64000", "--colour-range", "-1;1"], 2, "--colour-range is '-1;1'; expected a number, or several with commas"),
        (["--vocabulary", "64000"], 2, "--colour-range is missing"),
        (["--vocabulary", "640", "--colour-range", "-1,1"], 2, "expected 0 to 639, for a vocabulary of 640"),
        (["--preset", "cosmos-di", "--keep-codes", str(photos)], 2, "torchscript finds its ids without a table"),
    ):
        _, err = call_cli("import", "tokenizer", files[0], str(tmp_path / "no.tok"), *plain, *words, expect=expect)
        assert message in err and len(err.strip().splitlines()) == 1 and not (tmp_path / "no.tok").exists()


def test_what_is_wrong_is_one_sentence(weights: Path, photos: Path, tmp_path: Path) -> None:
    checkpoint, out = str(weights / "vit.ckpt"), str(tmp_path / "tok")
    for words, expect, message in (
        (
            ["--kind", "vqgan"],
            2,
            "--kind is 'vqgan'; expected one of conv-vqgan, maskgit, one-d-piece, open-magvit2, titok, torchscript, vit-vqgan, vq-kd",
        ),
        (["--kind", "titok"], 2, "no tensor latent_tokens"),
        (["--kind", "vit-vqgan", "--dtype", "half"], 2, "--dtype is 'half'; expected float32 or bfloat16"),
        (["--kind", "vit-vqgan", "--resize", "stretch"], 2, "--resize is 'stretch'; expected squash or crop"),
        (["--kind", "vit-vqgan", "--size", "64"], 2, "--size is 64; vit-vqgan has no such choice"),
        (["--kind", "vit-vqgan", "--keep-codes", str(photos), "--min-uses", "1000000"], 2, "no code is used 1000000 times or more"),
        (["--kind", "vit-vqgan", "--keep-codes", str(photos / "class_0" / "none")], 2, "none"),
    ):
        _, err = call_cli("import", "tokenizer", checkpoint, out, *words, expect=expect)
        assert message in err and len(err.strip().splitlines()) <= 2, err
    _, err = call_cli("import", "tokenizer", str(photos / "x.ckpt"), out, "--kind", "vit-vqgan", expect=2)
    assert "no file is here" in err
    assert not (tmp_path / "tok").exists()


def test_every_published_family_takes_a_checkpoint() -> None:
    allow_torchvision()  # diffusers loads it where it is installed
    for name in published_families():
        assert callable(getattr(load_family(name), "from_checkpoint", None)) and callable(getattr(load_family(name), "keep", None))
