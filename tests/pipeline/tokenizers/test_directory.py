from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.pipeline.tokenizers import toys
from tokenshards.pipeline.canonical import canonical_json, seal, sha256_hex, unseal
from tokenshards.pipeline.errors import CorruptObjectError, FormatVersionError, TokenizerError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_spec, load_statistics, load_tokenizer, resolve_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.kmeans.patch_kmeans import PatchKMeans, default_preprocess
from tokenshards.pipeline.tokenizers.registry import temporary_family


def small_tokenizer() -> PatchKMeans:
    rng = np.random.default_rng(0)
    tables = [rng.random((3, 12), np.float32), rng.random((2, 12), np.float32)]
    return PatchKMeans(tables, patch=2, preprocess=default_preprocess(8, "test-1"))


def test_what_is_on_disk(tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    digests = save_tokenizer(tokenizer, Store(str(tmp_path)), "tokenizer", {"images": 3})
    assert sorted(digests) == ["tokenizer/codebook.safetensors", "tokenizer/tokenizer.json"]
    value = unseal((tmp_path / "tokenizer/tokenizer.json").read_bytes(), "tokenizer.json")
    assert sorted(value) == ["fingerprint", "format_version", "made_by", "spec", "statistics"]
    assert value["format_version"] == "1.0" and value["fingerprint"] == tokenizer.spec.fingerprint
    tables = load_file(tmp_path / "tokenizer/codebook.safetensors")
    assert {name: table.shape for name, table in tables.items()} == {"level_0": (3, 12), "level_1": (2, 12)}
    assert np.array_equal(tables["level_1"], tokenizer.codebook()["level_1"])


def test_statistics_come_back(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    save_tokenizer(small_tokenizer(), store, "", {"levels": [{"psnr_db": 26.6}]})
    assert load_statistics(store) == {"levels": [{"psnr_db": 26.6}]}
    save_tokenizer(small_tokenizer(), store, "without")
    assert load_statistics(store, "without") == {}


def test_a_tokenizer_without_vectors_has_no_codebook_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with temporary_family("toy-sequence", "tests.pipeline.tokenizers.toys:FixedSequenceToy"):
        assert list(save_tokenizer(toys.FixedSequenceToy(), store)) == ["tokenizer.json"]
        assert load_tokenizer(store).codebook() == {}


def test_every_byte_of_both_files_is_guarded(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for path in save_tokenizer(small_tokenizer(), store):
        intact = (tmp_path / path).read_bytes()
        for bit in range(0, len(intact) * 8, 7):
            damaged = bytearray(intact)
            damaged[bit // 8] ^= 1 << (bit % 8)
            (tmp_path / path).write_bytes(damaged)
            with pytest.raises(CorruptObjectError, match=path):
                load_tokenizer(store)
        (tmp_path / path).write_bytes(intact)
    load_tokenizer(store)


def rewrite(path: Path, **changes: object) -> None:
    path.write_bytes(seal({**unseal(path.read_bytes(), path.name), **changes}))


def test_sealed_but_wrong_content_is_refused(tmp_path: Path) -> None:
    store, path = Store(str(tmp_path)), tmp_path / "tokenizer.json"
    save_tokenizer(small_tokenizer(), store)
    intact = path.read_bytes()
    spec = unseal(intact, path.name)["spec"]

    rewrite(path, format_version="1.7", later_key=1)
    load_tokenizer(store)
    rewrite(path, format_version="2.0")
    with pytest.raises(FormatVersionError, match=r"format 2\.0; this version reads up to 1\.x"):
        load_tokenizer(store)
    path.write_bytes(intact)
    rewrite(path, fingerprint="0" * 64)
    with pytest.raises(CorruptObjectError, match="fingerprint"):
        load_tokenizer(store)
    path.write_bytes(intact)
    more = {**spec, "surprise": 1}
    rewrite(path, spec=more, fingerprint=sha256_hex(canonical_json(more)))
    assert load_spec(store).fingerprint == sha256_hex(canonical_json(more))
    with pytest.raises(TokenizerError, match="fields that this version does not know, so that images would get other ids"):
        load_tokenizer(store)
    path.write_bytes(seal({"format_version": "1.0"}))
    with pytest.raises(CorruptObjectError, match="fingerprint"):
        load_tokenizer(store)


def test_a_spec_that_the_family_would_not_build_is_refused(tmp_path: Path) -> None:
    store, tokenizer = Store(str(tmp_path)), small_tokenizer()
    save_tokenizer(tokenizer, store)
    other = dataclasses.replace(tokenizer.spec, dtype="float16")
    rewrite(tmp_path / "tokenizer.json", spec=other.to_json(), fingerprint=other.fingerprint)
    with pytest.raises(TokenizerError, match=f"builds a tokenizer with fingerprint {tokenizer.spec.fingerprint}"):
        load_tokenizer(store)


def test_another_codebook_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    store, tokenizer = Store(str(tmp_path)), small_tokenizer()
    save_tokenizer(tokenizer, store, "a")
    tables = list(tokenizer.codebook().values())
    save_tokenizer(PatchKMeans([tables[0] + 1, tables[1]], patch=2, preprocess=tokenizer.spec.preprocess), store, "b")
    (tmp_path / "a/codebook.safetensors").write_bytes((tmp_path / "b/codebook.safetensors").read_bytes())
    with pytest.raises(CorruptObjectError, match="sha256"):
        load_tokenizer(store, "a")


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    save_tokenizer(toys.ConcatToy(), store)
    with pytest.raises(TokenizerError, match=r"'toy-concat' is unknown.*patch-kmeans"):
        load_tokenizer(store)


def test_saving_checks_the_codebook(tmp_path: Path) -> None:
    class Inconsistent(toys.ConcatToy):
        def codebook(self) -> dict[str, np.ndarray]:
            return {name: table + hasattr(self, "spec") for name, table in super().codebook().items()}

    with pytest.raises(TokenizerError, match="inconsistent"):
        save_tokenizer(Inconsistent(), Store(str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_resolving_a_directory_and_a_dataset(tmp_path: Path) -> None:
    save_tokenizer(small_tokenizer(), Store(str(tmp_path / "mine.tok")))
    save_tokenizer(small_tokenizer(), Store(str(tmp_path / "dataset")), "tokenizer")
    for url in (tmp_path / "mine.tok", tmp_path / "dataset", tmp_path / "dataset/tokenizer"):
        store, prefix = resolve_tokenizer(str(url))
        assert load_tokenizer(store, prefix).spec == small_tokenizer().spec
    with pytest.raises(TokenizerError, match=r"tokenizer\.json .*tokenizer/tokenizer\.json"):
        resolve_tokenizer(str(tmp_path / "nothing"))
