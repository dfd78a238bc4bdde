"""Every input of the zoo becomes what is stated of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.pipeline.sources.test_random_trees import check, converted
from tests.pipeline.sources.tree_grammar import Tree
from tests.pipeline.sources.web_server import Server, closed_port
from tests.pipeline.sources.zoo_inputs import INPUTS
from tokenshards.pipeline.config import UrlLimits


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_becomes_what_is_stated(name: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    tree = Tree(tmp_path / "src", random.Random(0), form=name)
    INPUTS[name](tree)
    check(tree, tmp_path / "scratch")


def test_urls_of_dead_hosts_cost_themselves_alone(web: Server, tmp_path: Path) -> None:
    """The server's answer is no image, which says that it came."""
    hosts = {"127.0.0.2": "ok.jpg", "127.0.0.3": "ok.jpg", "127.0.0.4": "status/404", "127.0.0.5": "status/403"}
    urls = [*(web.url(path, host) for host, path in hosts.items()), f"http://127.0.0.1:{closed_port()}/1.jpg"]
    (tmp_path / "src").mkdir()
    tree = Tree(tmp_path / "src", random.Random(0), named="t.csv")
    tree.write("t.csv", "\n".join(["url", *urls]).encode())
    tree.options = {"allow_private_hosts": True, "urls": UrlLimits(attempts=1, timeout_seconds=2.0)}
    found = converted(tree, tree.options, tmp_path / "scratch")
    reasons = [reason for _, reason in sorted(found.bad)]
    assert reasons == ["not_an_image", "not_an_image", "missing", "http_403", "refused"] and not found.rows
