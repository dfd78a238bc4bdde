"""Named crash points: tests kill the process there and check in a log that the point was hit. No cost when the variable is unset.

TOKENSHARDS_FAULT="point=after-data-put,times=3,victim=worker,log=/path/of/log[,key=text][,skip=2]" kills (SIGKILL) this process
(`victim=self` or `worker`) or its parent (`victim=driver`, for points inside a worker). It kills at the first `times` passes of the point
that follow the first `skip` passes. `action=hang` hangs there instead. `key` limits the point to one sample id. Every pass writes a line
to the log.
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
    """Kill this process or its parent here if the environment asks for it."""
    if name != _point or ("key" in _settings and _settings["key"] != key):
        return
    import fcntl  # missing on Windows, where no test uses crash points

    with open(_settings["log"], "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # two workers that count at the same time would kill once too often
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
        time.sleep(60)  # a watcher thread notices the death of the driver and ends this process
