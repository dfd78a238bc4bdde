"""The head of a cluster: noticed when it is gone."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from pipeline.errors import ClusterError
from pipeline.runners import ray_cluster
from pipeline.runners.ray_cluster import HEAD_SECONDS, HeadWatch


def test_a_head_that_stays_silent_ends_the_run_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(ray_cluster.time, "monotonic", lambda: now)
    with socket.socket() as closed:  # bound and not listening: nobody answers, and nobody else takes the port
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(ray_cluster.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
        watch = HeadWatch()
        for seconds in range(0, int(HEAD_SECONDS), 6):
            now = 1000.0 + seconds
            watch.check()
        assert not watch.answers()
        now = 1001.0 + HEAD_SECONDS
        with pytest.raises(ClusterError, match=r"has not answered for 41 s\. .* run the same command again"):
            watch.check()
    long_silence = 10 * HEAD_SECONDS
    now += long_silence
    watch.check()  # nobody had asked meanwhile: it begins to count only now
