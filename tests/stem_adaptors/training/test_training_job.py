"""A training as plain data, and what a worker elsewhere checks before it takes part."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.stem_adaptors.training.small_runs import AUGMENT, MODEL, KeptReporter, fit, request_for, tokenize_pair
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards import open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.stem_adaptors.cluster.code_identity import code_identity, require_code
from tokenshards.stem_adaptors.cluster.run_mark import marked, require_mark
from tokenshards.stem_adaptors.config import LoaderConfig, TrainConfig
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.training_job import TrainingJob

JOB = TrainingJob(
    data_url="train",
    val_url="s3://bucket/val",
    out_url="run",
    model=MODEL,
    augment=AUGMENT,
    loader=LoaderConfig(batch_size=16, cache_dir="cache"),
    train=TrainConfig(epochs=2, device="cpu"),
    mix=("more=0.5", "s3://bucket/other=2"),
    storage_options={"secret": "a-secret", "client_kwargs": {"region_name": "x"}},
)


def test_a_job_survives_json_and_shows_no_credentials() -> None:
    assert TrainingJob.from_json(json.loads(json.dumps(JOB.to_json()))) == JOB
    assert "a-secret" not in repr(JOB)


def test_local_paths_become_absolute_and_urls_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = JOB.made_absolute()
    assert (job.data_url, job.val_url, job.out_url) == (f"{tmp_path}/train", "s3://bucket/val", f"{tmp_path}/run")
    assert job.mix == (f"{tmp_path}/more=0.5", "s3://bucket/other=2") and job.loader.cache_dir == f"{tmp_path}/cache"
    assert job.made_absolute() == job


def test_a_job_trains_as_a_request_does_and_resumes_from_a_copy_of_the_data_elsewhere(tmp_path: Path) -> None:
    train, val = tokenize_pair(tmp_path)
    request = request_for(open_dataset(str(train)), tmp_path / "request", tmp_path / "cache", val=open_dataset(str(val)), epochs=3)
    fit(request)
    configs = {"model": request.model, "augment": request.augment, "loader": request.loader, "train": request.train}
    job = TrainingJob(data_url=str(train), val_url=str(val), out_url=str(tmp_path / "job"), **configs)
    stopped = KeptReporter()
    with pytest.raises(SystemExit) as stop:
        job.run(job.open_data(), Ranks(), torch.device("cpu"), stopped, resume=True, started=lambda trainer: trainer.request_stop(15))
    assert stop.value.code == 143 and "stopped after step 1 of 12, with a checkpoint" in stopped.lines[-1]
    shutil.move(train, tmp_path / "moved")
    moved = replace(job, data_url=str(tmp_path / "moved"))
    moved.run(moved.open_data(), Ranks(), torch.device("cpu"), KeptReporter(), resume=True)
    assert (tmp_path / "job" / "best.safetensors").read_bytes() == (tmp_path / "request" / "best.safetensors").read_bytes()


def test_a_worker_that_sees_another_folder_is_named(tmp_path: Path) -> None:
    out, elsewhere = Store(str(tmp_path / "run")), Store(str(tmp_path / "elsewhere"))
    with marked(out) as mark:
        require_mark(out, mark)
        with pytest.raises(ConfigError, match="elsewhere is another folder on .* than on the machine that started the training"):
            require_mark(elsewhere, mark)
    assert os.listdir(tmp_path / "run") == []
    with marked(Store("memory://run")) as mark:
        assert mark is None
        require_mark(elsewhere, mark)


def test_a_worker_with_other_code_is_named() -> None:
    require_code(code_identity())
    with pytest.raises(ConfigError, match=r"runs tokenshards .*; this terminal runs 9.9 \(abc\). Install the same on every node"):
        require_code("9.9 (abc)")
