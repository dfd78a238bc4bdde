from __future__ import annotations

import io
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.pipeline.tokenizers.published_states import pixels
from tests.pipeline.tokenizers.torchscript_programs import LEVELS, Brightness, cosmos, cosmos_files, traced
from tokenshards.pipeline.conversion.import_checkpoint import open_published, tokenizer_rows
from tokenshards.pipeline.errors import ConfigError, MissingObjectError, TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.custom.torchscript import TorchScript
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding

SIZE = 32
PLAIN = {"size": SIZE, "vocabulary": (256,), "colour_range": (0.0, 1.0)}


def make(encoder: bytes, decoder: bytes | None = None, **config: object) -> TorchScript:
    files = {"encoder": encoder, **({} if decoder is None else {"decoder": decoder})}
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in files.items()}
    return TorchScript.from_checkpoint(arrays, ImportConfig(**config), decoder="test-1", where="memory.jit")  # type: ignore[arg-type]


def make_cosmos(dtype: torch.dtype = torch.bfloat16) -> TorchScript:
    return make(*cosmos_files(dtype), size=SIZE, preset="cosmos-di")


def make_plain(form: str = "grid", *, batch: int = 0, **config: object) -> TorchScript:
    return make(brightness_file(form, batch), **{**PLAIN, **config})


@cache
def brightness_file(form: str = "grid", batch: int = 0) -> bytes:
    """Once: a file made again has other bytes."""
    return traced(Brightness(form, batch), torch.zeros(batch or 2, 3, SIZE, SIZE))


class TestCosmosContract(TokenizerContract):
    min_reencode_agreement = 0.0  # its networks are random: nothing leads back
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make_cosmos()


class TestSequenceContract(TokenizerContract):
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make_plain("sequence")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_file_gives_the_ids_of_the_network_in_the_dtype_of_its_parameters(dtype: torch.dtype, tmp_path: Path) -> None:
    for name, data in zip(("encoder.jit", "decoder.jit"), cosmos_files(dtype), strict=True):
        (tmp_path / name).write_bytes(data)
    config = ImportConfig(size=SIZE, preset="cosmos-di", decoder_file=str(tmp_path / "decoder.jit"))
    tokenizer, images = open_published("torchscript", str(tmp_path / "encoder.jit"), config), sample_images(13, SIZE)
    ids = tokenizer.encode(images).ids_BLQ
    encoder = cosmos(dtype)[0]
    with torch.no_grad():
        expected = torch.cat([encoder((pixels(part) * 2 - 1).to(dtype))[0] for part in (images[:8], images[8:])])
    assert np.mean(ids[:, :, 0] == expected.flatten(1).numpy()) > 0.98 and len(np.unique(ids)) > 50
    spec = tokenizer.spec
    assert spec.dtype == str(dtype).removeprefix("torch.") and spec.config["ids_dtype"] == "int32"
    assert (spec.vocabulary, spec.layout.kind, spec.layout.grid, spec.id_dtype) == ((64000,), "grid", (4, 4), np.dtype(np.uint16))
    assert (spec.preprocess.resize, spec.preprocess.filter, spec.preprocess.colour_range) == ("crop", "bicubic", (-1.0, 1.0))


class TellsItsOrder(nn.Module):
    """Its one id is 1 where the image is contiguous as [B, 3, H, W], and 0 where its channels lie last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        ids = torch.ones(x.size(0), 1, dtype=torch.int64) if x.is_contiguous() else torch.zeros(x.size(0), 1, dtype=torch.int64)
        return ids + 0 * x.flatten(1)[:, :1].to(torch.int64)


@pytest.mark.parametrize("count", [8, 5])
def test_a_program_sees_contiguous_images_and_the_import_says_so(count: int) -> None:
    tokenizer = make(traced(TellsItsOrder(), torch.zeros(1, 3, SIZE, SIZE), script=True), **{**PLAIN, "dtype": "bfloat16"})
    last = torch.zeros(count, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    assert tokenizer._encoder._module(last).ravel().tolist() == [1] * count
    assert tokenizer.encode(sample_images(count, SIZE)).ids_BLQ.ravel().tolist() == [1] * count
    assert ("networks", "bfloat16, images contiguous as [B, 3, H, W]") in tokenizer_rows(tokenizer)
    assert ("networks", "float32") in tokenizer_rows(make_plain())


def test_values_from_0_to_1_give_cosmos_other_ids() -> None:
    images = sample_images(8, SIZE)
    with torch.no_grad():
        wrong = cosmos()[0](pixels(images).to(torch.bfloat16))[0].flatten(1).numpy()
    assert np.mean(make_cosmos().encode(images).ids_BLQ[:, :, 0] == wrong) < 0.5


def test_the_decoder_sees_the_grid_and_its_pixels_run_from_minus_1_to_1() -> None:
    tokenizer = make_cosmos()
    ids = np.random.default_rng(0).integers(0, 64000, (9, 16, 1)).astype(np.uint16)
    with torch.no_grad():
        drawn = cosmos()[1](torch.from_numpy(ids.astype(np.int32)).reshape(9, 4, 4)).float()
    expected = ((drawn + 1) / 2 * 255).round().clamp(0, 255).permute(0, 2, 3, 1).numpy()
    shown = tokenizer.decode(TokenBatch(ids)).astype(float)
    assert np.abs(shown - expected).max() <= 2 and np.ptp(shown) > 100


def test_the_codebook_is_what_the_quantiser_says_of_each_id() -> None:
    images = sample_images(13, SIZE)
    tokenizer = make_cosmos(torch.float32)
    ids_BL = tokenizer.encode(images).ids_BLQ[:, :, 0]
    with torch.no_grad():
        codes_BLD = (
            torch.cat([cosmos(torch.float32)[0](pixels(part) * 2 - 1)[1] for part in (images[:8], images[8:])]).flatten(2).transpose(1, 2)
        )
    table_KD = tokenizer.codebook()["level_0"]
    assert table_KD.shape == (64000, 6) and tokenizer.spec.codebook is not None and tokenizer.spec.codebook.metric == "fsq"
    same_BL = (table_KD[ids_BL] == codes_BLD.numpy()).all(axis=-1)
    assert same_BL.mean() > 0.98 and np.ptp(codes_BLD.numpy(), axis=(0, 1)).min() > 0.4
    assert (len({tuple(row) for row in table_KD.tolist()}), LEVELS[0]) == (64000, len(np.unique(table_KD[:, 0])))


def test_ids_without_a_table_are_embedded_by_learned_rows() -> None:
    tokenizer = make_plain()
    assert tokenizer.spec.codebook is None and tokenizer.codebook() == {}
    embedding = TokenEmbedding(tokenizer.spec, {})
    assert embedding.learned and embedding(torch.from_numpy(tokenizer.encode(sample_images(2, SIZE)).ids_BLQ)).shape == (2, 32, 4, 4)


@pytest.mark.parametrize(
    ("form", "config", "kind", "grid", "ids_per_site"),
    [
        ("grid", {}, "grid", (4, 4), 1),
        ("sequence", {}, "sequence", (), 1),
        ("levels", {"vocabulary": (16, 16)}, "sequence", (), 2),
        ("video", {}, "video", (2, 4, 4), 1),
        ("one frame", {}, "grid", (4, 4), 1),
    ],
)
def test_the_shape_of_the_ids_is_the_layout(form: str, config: dict, kind: str, grid: tuple, ids_per_site: int) -> None:
    tokenizer = make_plain(form, **config)
    layout = tokenizer.spec.layout
    assert (layout.kind, layout.grid, layout.ids_per_site) == (kind, grid, ids_per_site)
    images = sample_images(11, SIZE)
    expected = torch.nn.functional.avg_pool2d(pixels(images), 8).mean(dim=1).mul(255).round().flatten(1).numpy().astype(int)
    ids = tokenizer.encode(images).ids_BLQ.astype(int)
    found = ids[:, :, 0] * 16 + ids[:, :, 1] if ids_per_site == 2 else ids[:, :16, 0]
    assert np.mean(found == expected) > 0.98


def _scripted(x: Tensor) -> Tensor:
    return (torch.nn.functional.avg_pool2d(x, 8).mean(dim=1) * 255).round().long()


def test_a_scripted_program_is_one_too() -> None:
    images = sample_images(9, SIZE)
    scripted = make(traced(_scripted, torch.zeros(1), script=True), **PLAIN)
    assert np.array_equal(scripted.encode(images).ids_BLQ, make_plain().encode(images).ids_BLQ)


@pytest.mark.parametrize(("form", "batch"), [("grid", 1), ("grid", 4), ("grid", 16), ("flat", 4)])
def test_a_network_that_kept_the_batch_it_was_traced_with_gets_that_batch(form: str, batch: int, tmp_path: Path) -> None:
    tokenizer = make_plain(form, batch=batch)
    assert tokenizer.spec.config["batch"] == batch
    images = sample_images(19, SIZE)
    save_tokenizer(tokenizer, Store(str(tmp_path)))
    found = load_tokenizer(Store(str(tmp_path))).encode(images).ids_BLQ
    assert np.array_equal(found, make_plain().encode(images).ids_BLQ)


def test_a_decoder_may_have_kept_another_batch() -> None:
    class Four(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = cosmos()[1]

        def forward(self, ids: Tensor) -> Tensor:
            return self.decoder(ids.reshape(4, 4, 4))

    decoder = traced(Four(), torch.zeros(4, 4, 4).int())
    tokenizer = make(cosmos_files()[0], decoder, size=SIZE, preset="cosmos-di")
    tokens = tokenizer.encode(sample_images(9, SIZE))
    assert (tokenizer.spec.config["batch"], tokenizer.spec.config["decoder_batch"]) == (8, 4)
    assert np.array_equal(tokenizer.decode(tokens), make_cosmos().decode(tokens))


def test_a_program_without_parameters_gets_the_dtype_that_was_asked_for() -> None:
    frozen = traced(cosmos()[0], torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bfloat16), freeze=True)
    tokenizer = make(frozen, size=SIZE, preset="cosmos-di", dtype="bfloat16")
    images = sample_images(8, SIZE)
    assert np.array_equal(tokenizer.encode(images).ids_BLQ, make_cosmos().encode(images).ids_BLQ)
    with pytest.raises(TokenizerError, match=r"memory\.jit: the program fails on float32 \[8, 3, 32, 32\]"):
        make(frozen, size=SIZE, preset="cosmos-di")


def test_programs_run_as_they_were_written() -> None:
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch._C._get_graph_executor_optimize())
            return x[:, 0].long()

    from tokenshards.pipeline.tokenizers.custom.torchscript import _Program

    _Program(Watched(), torch.float32, "x", gives_ids=True)(torch.zeros(8, 3, 4, 4))
    assert seen == [False] and torch._C._get_graph_executor_optimize()


@pytest.mark.parametrize(
    ("form", "config", "message"),
    [
        ("vectors", {}, r"gives float32 \[8, 3, 4, 4\]; expected integers, \[B, L\]"),
        ("mask", {}, r"gives bool \[8, 4, 4\]; expected integers"),
        ("beside", {}, r"the ids of an image change with the images beside it in a batch of 8"),
        ("random", {"vocabulary": (300,)}, "the same images get other ids the second time"),
        ("grid", {"vocabulary": (100,)}, r"gives the id \d+; expected 0 to 99, for a vocabulary of 100"),
        ("grid", {"vocabulary": (16, 16)}, r"ids of shape \[B, 4, 4\], with 2 vocabularies; expected \[B, …, 2\]"),
        ("grid", {"size": 8 * 4 + 4, "vocabulary": (1,)}, r"gives the id \d+; expected 0 to 0"),
    ],
)
def test_what_gives_no_ids_is_refused_with_what_it_gives(form: str, config: dict, message: str) -> None:
    with pytest.raises(TokenizerError, match=rf"memory\.jit: .*{message}"):
        make_plain(form, **config)


def test_an_id_outside_of_the_vocabulary_is_named_when_it_comes() -> None:
    white, black = np.full((1, SIZE, SIZE, 3), 255, np.uint8), np.zeros((1, SIZE, SIZE, 3), np.uint8)
    assert make_plain().encode(white).ids_BLQ.min() == 255 and make_plain().encode(black).ids_BLQ.max() == 0
    with pytest.raises(TokenizerError, match="gives the id 255; expected 0 to 254, for a vocabulary of 255"):
        make_plain(vocabulary=(255,)).encode(white)
    with pytest.raises(TokenizerError, match="gives the id -3; expected 0 to 255"):
        make_plain(colour_range=(-0.01, 1.0)).encode(black)


def test_the_first_tensor_counts_and_all_are_shown() -> None:
    def swapped(x: Tensor) -> tuple[Tensor, Tensor]:
        ids = Brightness()(x)
        return ids.float(), ids

    with pytest.raises(TokenizerError, match=r"gives \(float32 \[8, 4, 4\], int64 \[8, 4, 4\]\); expected integers"):
        make(traced(swapped, torch.zeros(2, 3, SIZE, SIZE)), **PLAIN)


def test_without_its_file_there_is_no_decoder() -> None:
    tokenizer = make(cosmos_files()[0], size=SIZE, preset="cosmos-di")
    with pytest.raises(DecodeNotSupported, match="without --decoder-file"):
        tokenizer.decode(tokenizer.encode(sample_images(1, SIZE)))
    with pytest.raises(TokenizerError, match=r"memory\.jit: for int32 \[8, 4, 4\] the program gives"):
        make(cosmos_files()[0], traced(lambda ids: ids + 1, torch.zeros(1, 4, 4).int()), size=SIZE, preset="cosmos-di")
    with pytest.raises(TokenizerError, match=r"the decoder gives \[8, 3, 4, 4\]; expected \[8, 3, 32, 32\]"):
        small = traced(lambda ids: torch.stack([ids.float()] * 3, dim=1), torch.zeros(1, 4, 4).int())
        make(cosmos_files()[0], small, size=SIZE, preset="cosmos-di")


def _state_dict() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, buffer)
    return buffer.getvalue()


def _other_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    return buffer.getvalue()


def _without_code() -> bytes:
    whole, buffer = zipfile.ZipFile(io.BytesIO(cosmos_files()[0])), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in whole.namelist():
            if not name.endswith("data.pkl"):
                archive.writestr(name, whole.read(name))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: _state_dict(), "holds a state dict, weights without a program; expected a file of torch.jit.save"),
        (lambda: b"\xff\xd8\xff\xe0" + bytes(50), r"54 bytes are no TorchScript program, it begins with b'\\xff\\xd8"),
        (lambda: b"", "0 bytes are no TorchScript program"),
        (lambda: cosmos_files()[0][:-100], "the end of the archive is missing"),
        (lambda: _other_zip(), "it holds no TorchScript program"),
        (lambda: _without_code(), r"torch cannot load this TorchScript program \("),
    ],
)
def test_other_files_are_one_sentence(data: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jit").write_bytes(data())  # type: ignore[operator]
    with pytest.raises(TokenizerError, match=rf"x\.jit: .*{message}") as refused:
        open_published("torchscript", str(tmp_path / "x.jit"), ImportConfig(preset="cosmos-di", size=SIZE))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"vocabulary": ()}, "--vocabulary is missing"),
        ({"colour_range": ()}, "--colour-range is missing"),
        ({"preset": "cosmos-di"}, "--preset cosmos-di says what --vocabulary and --colour-range are"),
        ({"preset": "cosmos"}, "--preset is 'cosmos'; for torchscript, expected cosmos-di, or none"),
        ({"max_tokens": 3}, "--max-tokens is 3"),
        ({"colour_range": (1.0, 0.0)}, r"--colour-range is \(1\.0, 0\.0\); expected such as 0,1"),
        ({"vocabulary": (0,)}, r"--vocabulary is \(0,\)"),
    ],
)
def test_what_no_file_says_must_be_said(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plain(**config)


def test_parameters_decide_the_dtype() -> None:
    with pytest.raises(ConfigError, match=r"--dtype is bfloat16; the parameters in memory\.jit are float32"):
        make(*cosmos_files(torch.float32), size=SIZE, preset="cosmos-di", dtype="bfloat16")


def test_its_own_options_are_no_others() -> None:
    from tests.pipeline.tokenizers.published.test_maskgit import make as make_maskgit

    for options, message in (
        ({"decoder_file": "x"}, "--decoder-file is x"),
        ({"vocabulary": (4,)}, "--vocabulary is"),
        ({"colour_range": (0, 1)}, "--colour-range is"),
    ):
        with pytest.raises(ConfigError, match=f"{message}.*maskgit has no such choice"):
            make_maskgit(**options)


def test_no_file_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingObjectError, match=r"x\.jit: no file is here; expected a file of torch\.jit\.save"):
        open_published("torchscript", str(tmp_path / "x.jit"), ImportConfig())
