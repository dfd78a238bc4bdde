"""Joins a Ray cluster as the driver of a training, and checks that all nodes run the same code."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.stem_adaptors.cluster.cluster_config import ADDRESS_ADVICE, answering_address
from tokenshards.stem_adaptors.cluster.code_identity import code_identity

__all__ = ["connected", "one_line", "require_same_code"]


def require_same_code() -> None:
    """Raise ConfigError unless every node runs this code: the check comes before a worker could fail over a difference."""

    def identity() -> str:
        try:
            from tokenshards.stem_adaptors.cluster.code_identity import code_identity
        except ImportError:
            return ""
        return code_identity()

    expected, asked = code_identity(), {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            asked[node["NodeManagerAddress"]] = ray.remote(identity).options(num_cpus=0, scheduling_strategy=there).remote()
    for host, answer in asked.items():
        found = ray.get(answer)
        if found != expected:
            raise ConfigError(
                f"the node {host} {f'runs tokenshards {found}' if found else 'has no tokenshards that can train'}; "
                f"this terminal runs {expected}. Install the same on every node"
            )


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Join the cluster as a driver, and leave it at the end; leaving ends everything that was started there."""
    target = answering_address(address)
    before = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # older Ray warns about workers that ask for no GPU
    try:
        with contextlib.chdir("/"):  # Ray puts the current folder first on the workers' path, and the folder may hold another `pipeline`
            ray.init(address=target, log_to_driver=False, logging_level=logging.CRITICAL)
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"the Ray cluster at {target} asks for a token ({one_line(error)}). Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to its file, as on the nodes"
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"the Ray cluster at {target} cannot be joined ({one_line(error)}). {ADDRESS_ADVICE}") from None
    signal.signal(signal.SIGTERM, before)  # the handler of `ray.init` ends the process before anything is put in order
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray's threads print messages of raylets and autoscaler, which must not reach stdout
            yield
    finally:
        ray.shutdown()


def one_line(error: BaseException | None) -> str:
    """Return the last line of an error, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[-1] if lines else type(error).__name__, 200)
