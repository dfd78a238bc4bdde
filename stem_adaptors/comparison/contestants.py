"""The tokenizers of a comparison: directories and datasets are opened, kinds are fitted. Each is kept in the comparison's store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from tokenshards.pipeline.canonical import sha256_hex
from tokenshards.pipeline.conversion.fit_kinds import CONFIGS, FitOptions, open_fit
from tokenshards.pipeline.errors import ConfigError, TokenizerError, shorten
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.storage.store import Store, display_url
from tokenshards.pipeline.tokenizers.base import describe_tokenizer
from tokenshards.pipeline.tokenizers.directory import load_statistics, load_tokenizer, resolve_tokenizer, save_tokenizer
from tokenshards.pipeline.words import near_names

__all__ = ["Contestant", "contestant_of", "keep_tokenizer"]

FIT_FILE = "fit.json"
_READERS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: ({"true": True, "false": False}.__getitem__, "true or false"),
    str: (str, "a text"),
}
"""How the value of an option is read, and what is expected of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """A tokenizer that takes part: a kind with options to fit, or the place of one."""

    name: str
    """As it was given, without credentials."""
    url: str
    fit: FitOptions | None
    identity: str
    """What decides its ids: the options of the fit, or a fingerprint."""

    def place(self, images: str) -> str:
        """Return its folder in a comparison on the images of this digest."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.name.rstrip("/").rpartition("/")[2] or self.name).strip("-.")[:40]
        return f"sides/{words or 'tokenizer'}-{sha256_hex(f'{self.identity} {images}'.encode())[:12]}"


def contestant_of(text: str, *, sample: int, out: Store, storage_options: dict[str, Any]) -> Contestant:
    """Return who takes part under this text. Raises ConfigError for no tokenizer or a wrong option, and the errors of reading one."""
    kind, _, given = text.partition(":")
    if kind in CONFIGS:
        options = FitOptions(kind=kind, seed=0, sample=sample, **_values(text, given))
        open_fit(options, out=out, storage_options=storage_options, say=lambda _: None)  # a wrong value is told before the listing
        return Contestant(name=text, url="", fit=options, identity=repr(options))
    name = display_url(text)
    try:
        store, prefix = resolve_tokenizer(text, storage_options)
    except TokenizerError:
        raise ConfigError(
            f"{name} is no tokenizer{near_names(kind, CONFIGS)}; expected a tokenizer directory, a dataset, or a kind to fit: "
            f"{', '.join(CONFIGS)}, with options such as layered-kmeans:site=16,codes=512"
        ) from None
    return Contestant(name=name, url=text, fit=None, identity=load_tokenizer(store, prefix).spec.fingerprint)


def _values(text: str, given: str) -> dict[str, Any]:
    """Return the options of `KIND:name=value,…` by name."""
    hints, names = get_type_hints(FitOptions), [field.name for field in fields(FitOptions)][3:]
    found: dict[str, Any] = {}
    for pair in filter(None, given.split(",")):
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if name not in names or not (equals or name == "mirrored"):
            raise ConfigError(
                f"{shorten(text)}: {shorten(pair)} is no option of a fit{near_names(name, names)}; expected NAME=VALUE, such as codes=512"
            )
        found[name] = True if not equals else _as(text, name, value.strip(), get_args(hints[name])[0])
    return found


def _as(text: str, name: str, value: str, kind: type) -> Any:
    read, wanted = _READERS[kind]
    try:
        return read(value)
    except (ValueError, KeyError):
        raise ConfigError(f"{shorten(text)}: {name} is {shorten(value)}; expected {wanted}") from None


def keep_tokenizer(
    who: Contestant,
    store: Store,
    place: str,
    source: ImageSource,
    sample: list[PlanRow],
    *,
    storage_options: dict[str, Any],
    say: Callable[[str], None],
) -> float | None:
    """Write the tokenizer to `place`/tokenizer, unless it is there; return the CPU seconds of its fit, None where it was given.

    Raises TokenizerError where no sampled input decodes.
    """
    folder = Store(f"{store.location}/{place}/tokenizer", storage_options=store.storage_options)
    if folder.info("tokenizer.json") is None:
        if who.fit is None:
            given, prefix = resolve_tokenizer(who.url, storage_options)
            tokenizer, statistics, seconds = load_tokenizer(given, prefix), load_statistics(given, prefix), None
        else:
            say(f"{who.name}: fitting …")
            fit = open_fit(who.fit, out=folder, storage_options=storage_options, say=say)
            begun = time.process_time()
            fitted = fit.run(source, sample)
            seconds = round(time.process_time() - begun, 2)
            tokenizer, statistics = fitted.tokenizer, fitted.statistics
            for note in fitted.notes:
                say(f"note: {note}")
        folder.write(FIT_FILE, json.dumps({"cpu_seconds": seconds}).encode())
        save_tokenizer(tokenizer, folder, "", statistics)
        say(f"{who.name}: {describe_tokenizer(tokenizer)}{'' if seconds is None else f', fitted in {seconds:,.0f} CPU seconds'}")
    else:
        say(f"{who.name}: kept from before in {display_url(folder.url)}")
    found: float | None = json.loads(folder.read(FIT_FILE))["cpu_seconds"]
    return found
