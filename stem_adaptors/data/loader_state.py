"""Where a loader is in its data, as plain JSON, and a check that a state fits a loader."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tokenshards.pipeline.errors import ConfigError, shorten

__all__ = ["STATE_VERSION", "LoaderState"]

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderState:
    """Everything that decides which samples come next. Batch size, ranks and workers decide nothing here; they may change at a resume."""

    version: int = STATE_VERSION
    manifest: list[str]
    """sha256 of each dataset's manifest."""
    seed: int
    epoch: int = 0
    next_global_index: int = 0
    """Positions of the epoch that all ranks together have received. Batches made ahead do not count."""
    mode: str
    """The order: `global`, `windowed` or `sequential`."""
    window: int | None
    """W and the lanes of the windowed order; None for the other orders."""
    lanes: int | None
    end: str
    mix_weights: list[int] | None
    """Draws from each dataset in one cycle of a mix."""
    subset: list[str | None]
    """Digest of the rows chosen of each dataset; None where all rows are read."""

    def next_epoch(self) -> LoaderState:
        """Return the start of the epoch after this one."""
        return replace(self, epoch=self.epoch + 1, next_global_index=0)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types, which `resume` reads."""
        return asdict(self)

    def resume(self, value: dict[str, Any]) -> LoaderState:
        """Return the state in `value` if it belongs to the same data and order as this one.

        Raises ConfigError naming the field, the value seen and the value expected.
        """
        names = [field.name for field in fields(self)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            seen = sorted(value) if isinstance(value, dict) else value
            raise ConfigError(f"the loader state has {shorten(seen)}; expected an object with the fields {', '.join(names)}")
        for name in names:
            seen, expected = value[name], getattr(self, name)
            if name in ("epoch", "next_global_index"):
                if type(seen) is not int or seen < 0:
                    raise ConfigError(f"{name} of the loader state is {shorten(seen)}; expected a whole number, 0 or more")
            elif type(seen) is not type(expected) or seen != expected:
                raise ConfigError(
                    f"{name} of the loader state is {shorten(seen)}; this loader has {shorten(expected)}. "
                    "Open the same data in the same order as the run that wrote the state, or start anew without it"
                )
        return LoaderState(**value)
