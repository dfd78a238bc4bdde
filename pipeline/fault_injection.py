"""Crash points by name: tests kill the process there and see in a log that the point was hit. Free when unset.

TOKENSHARDS_FAULT="point=after-data-put,times=3,victim=worker,log=/path/of/log[,key=text][,skip=2]" kills (SIGKILL) this process
(`victim=self` or `worker`) or its parent (`victim=driver`, for points inside a worker) the first `times` times that the point is
reached, after the first `skip` passes; `key` restricts it to one sample id. `action=hang` hangs there instead. Every pass is a line of
the log.
"""

from __future__ import annotations

import os
import signal
import time

__all__ = ["crash_point"]

HANG_SECONDS = 3600.0

_settings = dict(item.split("=", 1) for item in os.environ.get("TOKENSHARDS_FAULT", "").split(",") if "=" in item)
_point = _settings.get("point", "")


def crash_point(name: str, key: str = "") -> None:
    """Die here if the environment asks for it."""
    if name != _point or ("key" in _settings and _settings["key"] != key):
        return
    import fcntl  # Not on Windows, where no test asks for a death.

    with open(_settings["log"], "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # two workers that count at once would die once too often
        handle.seek(0)
        passes = sum(1 for _ in handle)
        skip = int(_settings.get("skip", "0"))
        kill = skip <= passes < skip + int(_settings.get("times", "1"))
        handle.write(f"{name} {os.getpid()} {'killed' if kill else 'passed'} {key}\n")
        handle.flush()
        os.fsync(handle.fileno())
    if kill and _settings.get("action") == "hang":
        time.sleep(HANG_SECONDS)
    elif kill:
        os.kill(os.getppid() if _settings.get("victim") == "driver" else os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the driver's death is noticed by the watcher thread, not here
