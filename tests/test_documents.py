"""The documents are true: README, then each guide in what README left behind, run command by command and block by block.

What needs a cluster is parsed against the command line and, where it is a `tokenize`, run on this machine; buckets are moto's.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import io
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
import webdataset
from PIL import Image

from tests.datasets import ROOT, call_cli, convert, quarantine_of, write_images
from tests.documents import console_lines, ordered_blocks, parse
from tests.pipeline.tokenizers import taesd_reference, vit_vqgan_reference
from tests.pipeline.tokenizers.published_states import table_from
from tests.pipeline.tokenizers.torchscript_programs import cosmos_files
from tests.s3_servers import moto_server
from tests.stem_adaptors.torchvision_shim import allow_torchvision
from tokenshards import cli, open_dataset
from tokenshards.pipeline.errors import Reason
from tokenshards.pipeline.named_code import ALLOW_PYTHON
from tokenshards.pipeline.storage.side_options import PROFILE_VARIABLES
from tokenshards.pipeline.tokenizers.config import GPU_ROWS
from tokenshards.pipeline.tokenizers.registry import ENTRY_POINTS
from tokenshards.stem_adaptors.config import STEMS, AugmentConfig
from tokenshards.stem_adaptors.models.own_code import MODELS
from tokenshards.stem_adaptors.training.defaults import _MODELS, _batch_size

allow_torchvision()  # the frameworks of the training guide import it
README = ROOT / "README.md"
PIPELINE, TRAINING, INFRA = (ROOT / room / "README.md" for room in ("pipeline", "stem_adaptors", "infra"))
BENCH, LOCAL_S3, SPEC = ROOT / "infra/bench/README.md", ROOT / "infra/local_s3/README.md", ROOT / "pipeline/shards/SPEC.md"
pytestmark = pytest.mark.timeout(300)  # README trains a classifier, within the first test's time
PAGES = (README, PIPELINE, TRAINING, INFRA, BENCH, LOCAL_S3, SPEC, ROOT / "CHANGELOG.md")

RUN_BY_OTHERS = {
    PIPELINE: {"py", "sh"},  # tests/integration/test_python_tokenizer.py
    TRAINING: {"py", "sh"},  # tests/integration/test_own_model.py
    INFRA: {"bash"},  # tests/test_infra.py
    LOCAL_S3: {"bash"},
}
"""Languages of blocks that another test runs or parses."""
PROMPTED = ("$", "tokenshards ", "python ", "pip ", "make ", "export ", "torchrun ", "ray ", "import ", "from ")
"""How a command or a Python program would begin in a block that nobody runs."""

PHOTOS = 72
ELSEWHERE = {"ray", "moto_server", "rclone", "mkdir", "rm"}
"""Programs of the infra pages, which tests/test_infra.py looks at."""
OF_SUBMIT = {"--address": 1, "--submission-id": 1, "--max-actors": 1, "--cpus-per-actor": 1, "--wait": 0, "--no-wait": 0, "--tail": 0}
"""Options that a local run has no use for, and how many words their values take."""


class Page:
    """Runs the blocks of a page in their order, in the current folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ran: list[str] = []
        """First words of the commands that ran, and of those that were parsed alone with a `?`."""
        self.said: dict[str, str] = {}
        """Command line to what it printed."""
        self.names: dict[str, Any] = {}

    def run(self) -> Page:
        for language, text in ordered_blocks(self.path):
            if language == "python":
                exec(compile(text, f"{self.path} (block)", "exec"), self.names)
            elif language == "console":
                for line in console_lines(text):
                    self._run_line(line)
        return self

    def _run_line(self, line: str) -> None:
        program, *words = shlex.split(os.path.expandvars(line), comments=True)
        if program == "torchrun":
            program, *words = words[words.index("--no-python") + 1 :]
            assert "train" in words
            words.append("--ray-workers=1")  # parsed alone, as what else starts several processes
        if program == "tokenshards":
            self._run_ours(line, words)
        elif program == "duckdb":
            flag, query = words
            assert flag == "-c" and duckdb.sql(query).columns
            self.said[line] = str(duckdb.sql(query).fetchall())
        elif program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
        elif program == "pip":
            self._check_install(words)
        elif program == "python":
            check_script(words)
        else:
            assert program in ELSEWHERE, line

    def _run_ours(self, line: str, words: list[str]) -> None:
        parse(typer.main.get_command(cli.app), words)
        if "--ray-workers" in " ".join(words):
            self.ran.append(f"{words[0]}?")
            return
        if words[0] == "submit":
            words = ["tokenize", *_without(words[1:], OF_SUBMIT)]
        words = _without(words, {"--runner": 1})
        if words[0] == "train" and "--epochs" not in words:  # the size of the data would choose 300
            words += ["--epochs", "1"]
        self.said[line] = call_cli(*words)[0]
        self.ran.append(words[0] if words[0] not in ("import", "export") else " ".join(words[:2]))

    def _check_install(self, words: list[str]) -> None:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for word in words:
            if found := re.fullmatch(r"\.\[(.*)\]", word):
                assert set(found[1].split(",")) <= known.keys(), word


def _without(words: list[str], options: dict[str, int]) -> list[str]:
    kept, rest = [], iter(words)
    for word in rest:
        if word in options:
            for _ in range(options[word]):
                next(rest)
        else:
            kept.append(word)
    return kept


def check_script(words: list[str]) -> None:
    """A script of the repository exists and knows its options, itself or through what it imports from beside it."""
    script = ROOT / words[0]
    source = script.read_text()
    for name in re.findall(r"^from (\w+) import", source, re.MULTILINE):
        if (beside := script.with_name(f"{name}.py")).exists():
            source += beside.read_text()
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in source, f"{words[0]} has no {option}"


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, an S3 server with a few images, and nothing of the user's own settings."""
    root = tmp_path_factory.mktemp("documents")
    here = Path.cwd()
    with pytest.MonkeyPatch.context() as patch, moto_server() as server:
        for name, value in {**server.env, "TOKENSHARDS_CACHE": str(root / "cache"), "BUCKET": "my-bucket"}.items():
            patch.setenv(name, value)
        write_images(root / "few", 12, side=64, seed=2)
        for place in ("bucket/photos", "trial/images", "my-bucket/images"):
            server.upload(root / "few", f"s3://{place}")
        try:
            yield root
        finally:
            os.chdir(here)


@pytest.fixture(scope="module")
def readme(away: Path) -> Page:
    """README, run in a folder with images and nothing else; the guides begin in a copy of what it leaves there."""
    (away / "home").mkdir()
    os.chdir(away / "home")
    for folder, count, seed in (("photos", PHOTOS, 0), ("val_photos", 12, 1), ("more_photos", 12, 3)):
        write_images(Path(folder), count, side=64, seed=seed)
    return Page(README).run()


def copied_home(away: Path, name: str) -> Path:
    os.chdir(away)
    shutil.copytree(away / "home", away / name)
    os.chdir(away / name)
    return away / name


def test_readme_runs_as_written(readme: Page, away: Path) -> None:
    first = ["plan", "tokenize", "verify", "preview", "inspect", "tokenize", "train", "evaluate", "predict"]
    assert readme.ran == [*first, "tokenize", "tokenize", "status"]
    made = ("look.png", "usage.png", "confusion.png", "run/curves.png", "run/best.safetensors")
    assert [name for name in made if not (away / "home" / name).exists()] == []
    assert readme.names["batch"].ids_BLQ.shape[0] == PHOTOS
    rows = next(text for line, text in readme.said.items() if line.startswith("duckdb"))
    assert rows.count("class_") == 3 * 2
    assert "complete" in readme.said["tokenshards status s3://bucket/tokens"]


@pytest.mark.parametrize("page", [README, PIPELINE, TRAINING, INFRA, LOCAL_S3], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_command_hides_where_nobody_runs_it(page: Path) -> None:
    """Output and trees of files hold no command, and every fence is one that `ordered_blocks` finds."""
    blocks = ordered_blocks(page)
    assert {language for language, _ in blocks} <= {"", "console", "python"} | RUN_BY_OTHERS.get(page, set())
    shown = [line for language, text in blocks if not language for line in text.splitlines()]
    for text in (text for language, text in blocks if language == "console"):
        assert console_lines(text), f"a console block without a command: {text}"
        shown += [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("$ ")]
    assert [line for line in shown if line.startswith(PROMPTED)] == []
    assert len(re.findall(r"^\s*```", page.read_text(), re.MULTILINE)) == 2 * len(blocks)


def test_readme_is_short_and_says_what_to_install() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 220
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    stated = re.search(r"pip install -c constraints.txt -e '\.\[([\w,]+)\]'", text)
    assert stated is not None
    needed = [package for extra in stated[1].split(",") for package in extras[extra]]
    assert any(package.startswith("matplotlib") for package in needed) and any(package.startswith("torch") for package in needed)


def test_images_to_shards(readme: Page, away: Path) -> None:
    home = copied_home(away, "pipeline")
    noise = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vit = vit_vqgan_reference.random_state()
    table = table_from(vit_vqgan_reference.encode(vit, noise), 300)
    torch.save({"state_dict": {**vit, "quantizer.embedding.weight": table}}, home / "imagenet_vitvq_base.ckpt")
    for part in ("encoder", "decoder"):
        torch.save(taesd_reference.random_state(part, pooled=part == "encoder"), home / f"taef2_{part}.pth")
    for name, data in zip(("encoder", "decoder"), cosmos_files(size=64), strict=True):
        (home / f"{name}.jit").write_bytes(data)
    write_images(home / "messy", 6, bad=2)
    convert(home / "messy", home / "messy.tokens")
    page = Page(PIPELINE).run()
    reports = {"quarantine", "retry-failed", "repair", "publish", "evaluate-tokenizer"}
    makes = {"fit-tokenizer", "import tokenizer", "import seit", "export seit", "export webdataset"}
    assert reports | makes <= {*page.ran}
    assert not [command for command in page.ran if command.endswith("?")]
    assert quarantine_of("messy.tokens").keys() == {f"class_{number % 3}/bad_{number:04}.jpg" for number in (6, 7)}
    assert np.array_equal(page.names["tokens"].ids_BLQ[0], open_dataset("photos.tokens").sample("class_0/img_0000.jpg").tokens.ids_BLQ[0])
    assert page.names["drawn_BHWC"].shape == (8, 64, 64, 3) and page.names["report"].already_complete
    assert page.names["batch"].table["flip"].to_pylist() == [False, True] * 4 and page.names["views"].views == 2
    assert [line for line in page.said if "2 inputs in quarantine" in page.said[line]] == ["tokenshards quarantine messy.tokens"]
    assert len(open_dataset("photos_public")) == PHOTOS and not (home / "photos_public" / "commits").exists()
    assert open_dataset("back.tokens").classes == open_dataset("small.tokens").classes
    assert open_dataset("more.tokens").spec == open_dataset("photos.tokens").spec
    assert [len(open_dataset(f"{name}.tokens")) for name in ("photos", "vit", "four", "views")] == [PHOTOS, PHOTOS, PHOTOS, 2 * PHOTOS]


def write_grey_masks(photos: Path, masks: Path) -> None:
    """Write a mask for each photo: three classes of brightness."""
    for path in photos.rglob("*.*"):
        grey = np.asarray(Image.open(path).convert("L"))
        target = (masks / path.relative_to(photos)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((grey // 86).astype(np.uint8)).save(target)


def test_shards_to_classifiers(readme: Page, away: Path) -> None:
    home = copied_home(away, "stem_adaptors")
    for photos, masks in (("photos", "masks"), ("val_photos", "val_masks")):
        write_grey_masks(home / photos, home / masks)
    page = Page(TRAINING).run()
    first = ["train", "evaluate", "evaluate", "predict", "train", "tokenize", "train", "train", "export classifier", "curve", "continual"]
    masked = ["tokenize", "tokenize", "train", "evaluate", "train"]
    assert page.ran == [*first, *masked, "train?", "train?", "train?", "preview", "train", "fit-tokenadapt", "train", "pretrain", "train"]
    made = (
        "augmented.png",
        "budgets.html",
        "replay.html",
        "segmenter/segments.png",
        "pyramid/run.json",
        "probe/run.json",
        "mixed/run.json",
        "noisy/run.json",
        "own_list/run.json",
        "fine/run.json",
    )
    assert [name for name in made if not (home / name).exists()] == []
    assert page.names["right"] > 0 and len(page.names["run"].classes) == 3
    assert page.names["place"]["epoch"] == 2 and page.names["logits_BC"].shape == (16, 3)
    standard = page.names["embedding"](page.names["batch"].ids_BLQ).std().item()
    assert 0.7 < standard < 1.4 and page.names["loss"].isfinite()


def test_what_train_chooses_is_the_table() -> None:
    rows = re.findall(r"^\| below ([\d,]+) \| `(\w+)` \| .*?(\d[\d,]*)(?: to| or|) ?([\d,]*) \|", TRAINING.read_text(), re.MULTILINE)
    assert [(int(limit.replace(",", "")), model) for limit, model, _, _ in rows] == list(_MODELS)
    for limit, _, low, high in rows:
        assert _batch_size(int(limit.replace(",", "")) - 1) == int((high or low).replace(",", ""))


def test_the_commands_of_infra_run_on_a_bucket(readme: Page, away: Path) -> None:
    copied_home(away, "infra")
    for page in (INFRA, LOCAL_S3):
        Page(page).run()
    for place in ("trial", "my-bucket"):
        assert len(open_dataset(f"s3://{place}/tokens/photos")) == 12


def test_benchmarks_have_the_options_of_their_page() -> None:
    calls = re.findall(r"^python (infra/bench/.*?)(?: +#.*)?$", BENCH.read_text(), re.MULTILINE)
    assert len(calls) > 10
    for call in calls:
        check_script(call.split())
    parts = ROOT / "infra/bench/gpu_check"
    known = (parts.with_suffix(".sh")).read_text() + (parts / "main.py").read_text()
    checks = re.findall(r"^(?:\w+=\S+ )?infra/bench/gpu_check.sh (.*?)(?: +#.*)?$", BENCH.read_text(), re.MULTILINE)
    options = {word for check in checks for word in check.split() if word.startswith("--")}
    assert len(options) > 4 and [option for option in options if option not in known] == []
    listed = set(re.findall(r"`(\w+\.py)`", BENCH.read_text()))
    assert {Path(call.split()[0]).name for call in calls} <= listed


def write_sources() -> None:
    """What the rows of README's table of inputs talk about, in the current folder."""
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(image, "JPEG")
    for name in ("photos/cat/1.jpg", "photos/dog/2.jpg", "flat/1.jpg", "flat/2.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(image.getvalue())
    Path("tars").mkdir()
    for tar in range(2):
        with webdataset.TarWriter(f"tars/{tar:03}.tar") as writer:
            for key in range(2):
                writer.write({"__key__": f"{key + 1:04}", "jpg": image.getvalue(), "cls": "cat", "json": {"caption": "a cat"}})
    rows = {"image": [{"bytes": image.getvalue(), "path": "1.jpg"}] * 2, "label": ["cat", "dog"], "caption": ["a cat", "a dog"]}
    pq.write_table(pa.table(rows), "data.parquet")
    Path("list.csv").write_text("key,file,label,caption\nk1,photos/cat/1.jpg,cat,a cat\nk2,photos/dog/2.jpg,dog,a dog\n")


def test_each_row_of_the_table_of_inputs_is_true(away: Path) -> None:
    (away / "inputs").mkdir()
    os.chdir(away / "inputs")
    write_sources()
    table = README.read_text().split("| you have |")[1].split("\n\n")[0]
    rows = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    assert len(rows) == 5
    for number, (_, command, sample_id, label, meta) in enumerate(rows):
        program, *words = shlex.split(command.strip().strip("`"))
        out = f"{number}.tokens"
        assert program == "tokenshards" and "OUT" in words
        call_cli(*(out if word == "OUT" else word for word in words))
        sample = open_dataset(out).sample(re.findall(r"`([^`]+)`", sample_id)[-1])
        assert sample.label == (re.findall(r"`([^`]+)`", label)[-1] if "`" in label else None), command
        assert ("meta.caption" in sample.row) == ("--meta" in meta and "--meta" in words), command


def test_every_reason_of_the_quarantine_is_explained() -> None:
    assert re.findall(r"^\| `([a-z0-9_]+)` \| [a-z0-9]", PIPELINE.read_text().split("| reason |")[1].split("\n\n")[0], re.MULTILINE) == [
        reason.value for reason in Reason
    ]


def test_every_command_is_in_the_table() -> None:
    table = README.read_text().split("## Commands")[1].split("Every command")[0]
    command = typer.main.get_command(cli.app)
    names = [name for name, found in command.commands.items() if not hasattr(found, "commands")]
    names += [f"{name} {inner}" for name, found in command.commands.items() for inner in getattr(found, "commands", ())]
    assert [name for name in names if f"`{name}" not in table] == []


def options_of(command: Any) -> set[str]:
    own = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    return own.union(*(options_of(inner) for inner in getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", [README, PIPELINE, TRAINING], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    known = options_of(typer.main.get_command(cli.app)) | {"--nproc-per-node", "--no-python", "--help"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.read_text()))
    assert len(named) > 8 and named <= known, named - known


OF_OTHERS = {
    "--head",
    "--port",
    "--dashboard-host",
    "--follow",
    "--force-reinstall",
    "--query-gpu",
    "--format",
    "--src",
    "--help",
    "--sort",
    "--dereference",
    "--hard-dereference",
    "--no-python",
    "--nproc-per-node",
}
"""Options of ray, pip, nvidia-smi, SeiT, click, tar and torchrun that our texts name."""


def test_every_option_that_a_message_names_exists() -> None:
    known = options_of(typer.main.get_command(cli.app)) | OF_OTHERS
    unknown = []
    for path in (path for package in ("pipeline", "stem_adaptors") for path in (ROOT / package).rglob("*.py")):
        constants = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        named = {name for text in constants if isinstance(text, str) for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)}
        unknown += [(str(path.relative_to(ROOT)), name) for name in sorted(named - known)]
    assert unknown == []


def test_sources_cite_papers_and_not_sections_of_our_notes() -> None:
    texts = {path: path.read_text() for package in ("pipeline", "stem_adaptors") for path in (ROOT / package).rglob("*.py")}
    assert [str(path) for path, text in texts.items() if re.search(r"SeiT(?:\+\+)?, (?:section )?\d|references/[a-z]", text)] == []
    cited = set(re.findall(r"SeiT(?:\+\+)?, [A-Z]\w+ et al\. \d+", "".join(texts.values())))
    assert cited == {"SeiT, Park et al. 2023", "SeiT++, Lee et al. 2024"}


def test_the_table_of_augmentations_names_every_setting() -> None:
    table = TRAINING.read_text().split("| operation |")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)(?:=[\d.]+)?`", table))
    fields = {field.name for field in dataclasses.fields(AugmentConfig)}
    assert named <= fields and fields - named == {"synonym_metric"}  # the table says: the tokenizer's own metric


def test_every_room_has_its_line() -> None:
    table = README.read_text().split("## Where things are")[1]
    for row in re.findall(r"^\| .*`.*$", table, re.MULTILINE):
        first, second = (re.findall(r"`([\w/]*[/.]\w*)`", cell) for cell in row.strip("| ").split(" | "))
        assert [name for name in first if not any((ROOT / parent / name).exists() for parent in ("", "pipeline", "stem_adaptors"))] == []
        rooms = [name for name in first if name.endswith("/")] or ["pipeline"]
        inside = [path for room in rooms for path in (ROOT / room).rglob("*")]
        assert [name for name in second if not any(path.match(name.rstrip("/")) for path in inside)] == [], row
    rooms = [path.parent for package in ("pipeline", "stem_adaptors") for path in (ROOT / package).glob("*/__init__.py")]
    told = {f"{room.parent.name}/{room.name}/" for room in rooms if room.name != "commands"}
    assert [room for room in sorted(told) if f"`{room}`" not in table and f"`{room.split('/')[1]}/`" not in table] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_and_words_are_plain(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", text):
        name, _, anchor = target.partition("#")
        aim = page if not name else (page.parent / name).resolve()
        assert aim.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", aim.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in anchors, target
    for name in re.findall(r"\b(?:infra|pipeline|stem_adaptors|tests)/[\w./-]*\w\.(?:py|md|json|yaml|sh)\b", text):
        assert (ROOT / name).exists(), name
    assert not re.findall(r"\bpictures?\b", text, re.IGNORECASE) and "@@" not in text
    assert not re.findall(r"\b(?:for good|at hand|on the fly|goodbye|sign of life|all the same)\b", text)  # say it plainly
    assert not re.findall(r"(?<!\.)tokenshards\[\w", text)  # no package index has it: install from the checkout


def test_what_imports_became_is_there() -> None:
    table = (ROOT / "CHANGELOG.md").read_text().split("| before | now |")[1].split("\n\n")[0]
    rows = re.findall(r"^ *\| `(.*?)` .*?\| (.*) \|$", table, re.MULTILINE)
    assert len(rows) > 10
    for before, now in rows:
        wanted = re.search(r"import ([\w, ]+)", before)
        assert wanted is not None
        for name in re.findall(r"tokenshards(?:\.\w+)+", now):
            parent, _, last = name.rpartition(".")
            value = getattr(importlib.import_module(parent), last, None) or importlib.import_module(name)
            if hasattr(value, "__path__") or hasattr(value, "__file__"):  # a module, which must hold what the old one held
                assert all(hasattr(value, part) for part in wanted[1].split(", ")), name


def test_the_changes_of_a_version_are_three_lists_without_doubles() -> None:
    for version in re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]:
        sections = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert sections == [name for name in ("Added", "Changed", "Fixed") if name in sections]
        entries = re.findall(r"^- (.{40})", version, re.MULTILINE)
        assert sorted(set(entries)) == sorted(entries)


def test_the_profiles_and_variables_of_stores_and_networks_are_told() -> None:
    text = TRAINING.read_text()
    assert [name for name in (MODELS, STEMS, ENTRY_POINTS, ALLOW_PYTHON) if f"`{name}`" not in text] == []
    text = PIPELINE.read_text()
    assert [name for name in (*PROFILE_VARIABLES.values(), GPU_ROWS, ENTRY_POINTS) if f"`{name}`" not in text] == []


def test_the_newest_change_is_the_version_of_the_package() -> None:
    newest = re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
