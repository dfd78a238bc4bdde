"""What a submitted job runs on its node: check the node, then become the command line.

Started as `python -m tokenshards.pipeline.submit.job_entry ARGUMENTS`.

Standard library alone and plain syntax: it must come as far as its message under a Python that cannot run the rest.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import tokenshards

__all__ = ["CLUSTER_PYTHON", "EXTRA", "main", "node_problem"]

EXTRA = "cluster"
"""The extra under which the shipped metadata state what a node needs."""
CLUSTER_PYTHON = "TOKENSHARDS_CLUSTER_PYTHON"
"""Variable with the version of the Python that the cluster's own processes run."""
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
    """Return one sentence on why this Python cannot run the job, empty if it can.

    `requirements` are of the form `name>=version`; `cluster_python` is a version such as 3.11.7, or empty where it is not known.
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
    """Replace this process by the command line, or end with one sentence and exit code 2."""
    stated = [text.partition(";") for text in requires("tokenshards") or ()]
    problem = node_problem([text for text, _, marker in stated if EXTRA in marker], os.environ.get(CLUSTER_PYTHON, ""))
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    # Ray puts the driver's folder in front of what its workers import: it must hold this code, never another `tokenshards`.
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(tokenshards.__file__))))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "tokenshards.cli", *sys.argv[1:]])


if __name__ == "__main__":
    main()
