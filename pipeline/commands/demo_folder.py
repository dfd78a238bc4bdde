"""The folder of `demo`: a mark file shows that it is ours, so that `demo` never removes a user's files."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenshards.pipeline.errors import ConfigError

__all__ = ["MARK", "clear_demo_folder"]

MARK = ".tokenshards-demo"
"""File that marks a folder as the demo's own."""


def clear_demo_folder(root: Path, *names: str) -> None:
    """Remove what an earlier demo wrote under these names, so that each demo shows a first run. Mark a new or empty folder.

    Raises ConfigError if the folder has content but no mark: then it belongs to the user, and nothing in it is touched.
    """
    mark = root / MARK
    try:
        if not mark.is_file():
            root.mkdir(parents=True, exist_ok=True)
            found = sorted(path.name for path in root.iterdir())
            if found:
                raise ConfigError(
                    f"{root}: the demo replaces its folder's content, but this one holds {len(found)} files or folders of yours, such as "
                    f"{found[0]!r}; expected a new or empty folder, or one of an earlier demo. Give another: tokenshards demo demo_out"
                )
            mark.write_text("The demo of tokenshards made this folder and replaces its content when it runs again.\n")
        for name in names:
            if (root / name).exists():
                shutil.rmtree(root / name)
    except OSError as error:
        raise ConfigError(f"{root}: the demo cannot use this folder ({error}); expected a folder that can be written") from None
