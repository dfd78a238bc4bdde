"""The entry point of a submitted job on its node: check the node, then replace this process by the command line.

Started as `python -m tokenshards.pipeline.submit.job_entry ARGUMENTS`.

It uses only the standard library and plain syntax, because it must print its message even under a Python that cannot run the rest.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import tokenshards

__all__ = ["CLUSTER_PYTHON", "EXTRA", "main", "node_problem"]

EXTRA = "cluster"
"""The extra in the shipped metadata that lists the requirements of a node."""
CLUSTER_PYTHON = "TOKENSHARDS_CLUSTER_PYTHON"
"""Environment variable with the Python version of the cluster's own processes."""
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(?:>=\s*([0-9.]+))?")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3])


def _lacking(requirements: list[str]) -> list[str]:
    found = []
    for text in requirements:
        match = _REQUIREMENT.match(text)
        if match is None:
            continue
        name, least = match[1], match[2] or "0"
        try:
            have = version(name)
        except PackageNotFoundError:
            found.append(f"{name}>={least}")
            continue
        if _numbers(have) < _numbers(least):
            found.append(f"{name}>={least} (it has {have})")
    return found


def node_problem(requirements: list[str], cluster_python: str) -> str:
    """Return one sentence that says why this Python cannot run the job, "" if it can.

    `requirements` have the form `name>=version`; `cluster_python` is a version such as 3.11.7, "" if unknown.
    """
    here = ".".join(str(part) for part in sys.version_info[:3])
    if cluster_python and here != cluster_python:
        return (
            f"`python` on this node is {sys.executable} with Python {here}, but Ray runs Python {cluster_python} here: "
            "put the folder of Ray's own python first on the PATH of `ray start`"
        )
    lacking = _lacking(requirements)
    if lacking:
        return (
            f"the Python of this node ({sys.executable}) lacks {', '.join(lacking)}: "
            "install it into the image of the nodes, or submit again with --install-dependencies"
        )
    return ""


def main() -> None:
    """Replace this process by the command line, or print one sentence and exit with code 2."""
    stated = [text.partition(";") for text in requires("tokenshards") or ()]
    problem = node_problem([text for text, _, marker in stated if EXTRA in marker], os.environ.get(CLUSTER_PYTHON, ""))
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    # Ray puts the driver's current folder first on its workers' import path, so it must hold this code and no other `tokenshards`.
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(tokenshards.__file__))))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "tokenshards.cli", *sys.argv[1:]])


if __name__ == "__main__":
    main()
