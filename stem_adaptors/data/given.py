"""What users give to the reader: datasets, configs and settings. Anything else is refused with a sentence that says what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.shards.dataset import Batch, TokenDataset
from tokenshards.pipeline.words import near_names
from tokenshards.stem_adaptors.config import LoaderConfig
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection

__all__ = ["loader_config", "require_data"]

_SELECT = "select(dataset, rows=...) of tokenshards.stem_adaptors.data.selection"


def require_data(first: Any, *optional: Any, whole: bool = False) -> None:
    """Raise ConfigError unless each is a dataset, a selection or a mix; with `whole`, a dataset. Optional ones may be None."""
    for data in (first, *(data for data in optional if data is not None)):
        if isinstance(data, TokenDataset if whole else (TokenDataset, Selection, Mix)):
            continue
        if isinstance(data, (str, os.PathLike)):
            advice = f"a dataset: tokenshards.open_dataset({os.fspath(data)!r})"
        elif isinstance(data, Batch):
            advice = f"a dataset. A slice of one is rows in memory; to read a part, take {_SELECT}"
        elif isinstance(getattr(data, "dataset", None), TokenDataset):
            advice = "a whole dataset" if whole else f"a dataset, or a part of one, which is {_SELECT}"
        else:
            advice = "a dataset, which tokenshards.open_dataset opens"
        raise ConfigError(f"the data are {shorten(data)}, of type {type(data).__name__}; expected {advice}")


def loader_config(config: LoaderConfig | None, settings: Mapping[str, Any]) -> LoaderConfig:
    """Return the config with settings in place of its fields. Raises ConfigError for another type, TypeError for an unknown setting."""
    if config is not None and not isinstance(config, LoaderConfig):
        raise ConfigError(
            f"config is {shorten(config)}, of type {type(config).__name__}; expected a tokenshards.LoaderConfig, or settings by name, such "
            "as batch_size=64"
        )
    known = [field.name for field in fields(LoaderConfig)]
    for name in settings:
        if name not in known:
            raise TypeError(f"there is no setting {name!r} of LoaderConfig{near_names(name, known)}; its fields are {', '.join(known)}")
    return replace(config or LoaderConfig(), **settings)
