"""The folder of `demo`: its own, marked as such, so that nothing of anybody else is ever removed."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenshards.pipeline.errors import ConfigError

__all__ = ["MARK", "clear_demo_folder"]

MARK = ".tokenshards-demo"
"""File that makes a folder the demo's own."""


def clear_demo_folder(root: Path, *names: str) -> None:
    """Remove what an earlier demo wrote under these names, because a demo shows a first run each time. An empty or new folder is marked.

    Raises ConfigError where the folder holds something and has no mark: then it is somebody's own, and nothing in it is touched.
    """
    mark = root / MARK
    try:
        if not mark.is_file():
            root.mkdir(parents=True, exist_ok=True)
            found = sorted(path.name for path in root.iterdir())
            if found:
                raise ConfigError(
                    f"{root}: the demo replaces what is in its folder, and this one holds {len(found)} files or folders of yours, such as "
                    f"{found[0]!r}; expected a new or empty folder, or one of an earlier demo. Give another: tokenshards demo demo_out"
                )
            mark.write_text("The demo of tokenshards made this folder, and replaces what is in it when it runs again.\n")
        for name in names:
            if (root / name).exists():
                shutil.rmtree(root / name)
    except OSError as error:
        raise ConfigError(f"{root}: the demo cannot use this folder ({error}); expected one that can be written") from None
