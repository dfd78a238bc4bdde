from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.contracts.tokenizer_contract import TokenizerContract, sample_images
from tests.datasets import ROOT
from tests.pipeline.tokenizers.python_plugins import SIZE, brightness
from tokenshards.pipeline.conversion.import_checkpoint import open_published
from tokenshards.pipeline.errors import ConfigError, MissingObjectError, TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.submit.forwarding import forwarded_variables
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Tokenizer
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.custom.python_callable import PythonTokenizer
from tokenshards.pipeline.tokenizers.directory import load_spec, load_tokenizer, save_tokenizer

HERE = "tests.pipeline.tokenizers.python_plugins"
ALLOW = "TOKENSHARDS_ALLOW_PYTHON"


def make(name: str = "Brightness", file: str = "", **settings: object) -> PythonTokenizer:
    made = open_published(f"python:{HERE}:{name}", file, ImportConfig(settings=settings))
    assert isinstance(made, PythonTokenizer)
    return made


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, HERE)


@pytest.mark.usefixtures("allowed")
class TestContract(TokenizerContract):
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make(shift=3)


@pytest.mark.usefixtures("allowed")
class TestLevelsContract(TokenizerContract):
    flips_per_file = 6

    def make_tokenizer(self) -> Tokenizer:
        return make("Levels")


def test_ids_are_those_of_the_callable_with_its_settings() -> None:
    tokenizer, images = make(shift=5), sample_images(11, SIZE)
    before = images.copy()
    assert np.array_equal(tokenizer.encode(images).ids_BLQ[:, :, 0], (brightness(images).reshape(11, 16) + 5) % 256)
    assert np.array_equal(images, before)
    spec = tokenizer.spec
    assert (spec.layout.kind, spec.layout.grid, spec.vocabulary, spec.preprocess.resize) == ("grid", (4, 4), (256,), "crop")
    assert spec.fingerprint not in (make().spec.fingerprint, make("Levels").spec.fingerprint)


def test_it_always_sees_the_same_number_of_images() -> None:
    tokenizer = make()
    tokens = tokenizer.encode(sample_images(11, SIZE))
    assert set(tokenizer._made.batches) == {8} and len(tokens) == 11 == len(tokenizer.decode(tokens))
    assert make("Levels").encode(sample_images(4, SIZE)).ids_BLQ.shape == (4, 16, 2)  # it asserts that there are three


def test_the_file_goes_to_the_callable_and_along(tmp_path: Path, allowed: None) -> None:
    (tmp_path / "w.bin").write_bytes(b"1234567")
    tokenizer, images = make(file=str(tmp_path / "w.bin")), sample_images(3, SIZE)
    assert np.array_equal(tokenizer.encode(images).ids_BLQ, make(shift=7).encode(images).ids_BLQ)
    save_tokenizer(tokenizer, Store(str(tmp_path / "tok")))
    (tmp_path / "w.bin").unlink()
    assert np.array_equal(load_tokenizer(Store(str(tmp_path / "tok"))).encode(images).ids_BLQ, tokenizer.encode(images).ids_BLQ)
    with pytest.raises(MissingObjectError, match=r"w\.bin: no file is here; expected one for python:.*Brightness"):
        make(file=str(tmp_path / "w.bin"))


def test_levels_have_their_vectors_and_no_way_back() -> None:
    tokenizer = make("Levels")
    assert tokenizer.spec.codebook is not None and tokenizer.spec.codebook.dims == (1, 1) and tokenizer.spec.layout.combine == "concat"
    assert tokenizer.codebook()["level_0"][3, 0] == 48
    with pytest.raises(DecodeNotSupported, match="Levels: it has no `decode`"):
        tokenizer.decode(TokenBatch(np.zeros((1, 16, 2), np.uint8)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "it gives None without size; expected an object with size, vocabulary and encode"),
        ("no encode", "without encode"),
        ("size", "size is '32'; expected the side"),
        ("vocabulary", r"vocabulary is 0\.5; expected how many ids"),
        ("narrow", r"gives the id \d+; expected 0 to 8"),
        ("batch", "batch is 0; expected how many images"),
        ("floats", r"for 8 images it gives float64 \[8, 32, 32\]; expected integers"),
        ("rows", r"encode gives int64 \[5, 4, 4\] for 8 images"),
        ("numbers", r"encode gives int64 \[\] for 8 images"),
        ("raises", r"encode raised IndexError: .*at python_plugins\.py:\d+"),
        ("negative", r"gives the id -\d+; expected 0 to 255"),
        ("random", "get other ids the second time"),
        ("beside", "change with the images beside it"),
        ("drawing", r"decode gives int64 \[8, 4, 4\]; expected uint8 \[8, 32, 32, 3\]"),
        ("codebook", r"codebook has the shapes \[\(5, 2\)\]; expected finite numbers \[K, D\] for each level, with K = 256"),
        ("codebook of nan", "expected finite numbers"),
        ("codebook of words", "codebook raised ValueError"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_the_callable(what: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=f"python:{HERE}:unfit: .*{message}") as refused:
        make("unfit", what=what)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("python:no_such_module:f", "there is no module no_such_module on the Python path"),
        ("python:no_such_package.x:f", "no_such_package.x cannot be found"),
        (f"python:{HERE}:absent", "has no callable absent, but None"),
        (f"python:{HERE}:NUMBER", "has no callable NUMBER, but 3"),
        (f"python:{HERE}:brightness", "brightness raised AttributeError"),
        ("python:sys:exit", "sys has no file"),
        ("python:os.path", "names no callable; expected python:package.module:callable"),
        ("python:a:b;reboot", "names no callable"),
    ],
)
def test_a_name_that_leads_nowhere_is_one_sentence(kind: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        open_published(kind, "", ImportConfig())


def test_options_of_other_kinds_are_refused() -> None:
    for name, value in (("size", 32), ("vocabulary", (4,)), ("preset", "x")):
        with pytest.raises(ConfigError, match=f"--{name} was given; with --kind python it is the callable's"):
            open_published(f"python:{HERE}:Brightness", "", ImportConfig(**{name: value}))
    with pytest.raises(ConfigError, match="CHECKPOINT or OUT.tok is missing; expected both for --kind vit-vqgan"):
        open_published("vit-vqgan", "", ImportConfig())
    with pytest.raises(ConfigError, match=r"--config is \{'a': 1\}; maskgit has no such choice"):
        from tests.pipeline.tokenizers.published.test_maskgit import make as make_maskgit

        make_maskgit(settings={"a": 1})


@pytest.mark.parametrize(
    ("value", "fits"),
    [
        (f"{HERE}:Brightness", True),
        (f"os, {HERE}", True),
        ("tests", True),
        ("", False),
        ("test", False),
        (f"{HERE}:Bright", False),
        ("*", False),
        (f"{HERE}:Levels", False),
    ],
)
def test_only_what_the_user_names_is_run(value: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    save_tokenizer(make(), store)
    monkeypatch.setenv(ALLOW, value)
    if fits:
        assert load_tokenizer(store).spec == load_spec(store)
    else:
        with pytest.raises(TokenizerError, match=f"{HERE}:Brightness, and {ALLOW} .*export {ALLOW}={HERE}:Brightness"):
            load_tokenizer(store)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on the path that leaves a mark where it is imported."""
    path = tmp_path / "own_colours.py"
    path.write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\nfrom {HERE} import Brightness\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("own_colours", None)


def test_nothing_is_imported_without_leave_or_when_the_file_changed(own_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, ran = Store(str(own_module.parent / "tok")), own_module.parent / "ran"
    save_tokenizer(open_published("python:own_colours:Brightness", "", ImportConfig()), store)

    def forget() -> None:
        ran.unlink(missing_ok=True)
        sys.modules.pop("own_colours", None)
        importlib.invalidate_caches()

    forget()
    monkeypatch.delenv(ALLOW, raising=False)
    with pytest.raises(TokenizerError, match=f"{ALLOW} is not set"):
        load_tokenizer(store)
    assert load_spec(store).family == "python" and not ran.exists()
    monkeypatch.setenv(ALLOW, "own_colours:Brightness")
    load_tokenizer(store)
    assert ran.exists()
    forget()
    own_module.write_text(own_module.read_text() + "\n# better now\n")
    with pytest.raises(
        TokenizerError, match="own_colours:Brightness: the file of its module has the sha256 .*, and had .* when the tokenizer was imported"
    ):
        load_tokenizer(store)
    assert not ran.exists()
    own_module.unlink()
    importlib.invalidate_caches()
    with pytest.raises(TokenizerError, match="there is no module own_colours on the Python path"):
        load_tokenizer(store)


def test_jobs_get_the_leave_of_where_they_were_started() -> None:
    assert forwarded_variables({ALLOW: "mine:build", "OTHER": "x"}) == {ALLOW: "mine:build"}


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tokenshards.pipeline.config import ImportConfig\n"
        "from tokenshards.pipeline.conversion.import_checkpoint import open_published\n"
        f"print(open_published('python:{HERE}:Brightness', '', ImportConfig()).spec.family)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == "python", found.stderr
