"""The kinds of tokenizer that `fit-tokenizer` can make, and of them those that `tokenize` makes itself: options and fit of each kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from tokenshards.pipeline.conversion.fit import (
    FittedTokenizer,
    fit_latent_tokenizer,
    fit_layered_tokenizer,
    fit_tokenizer,
    fit_vq_tokenizer,
)
from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig, LatentFitConfig, LayeredFitConfig, OwnFitConfig, VqFitConfig

__all__ = ["Fit", "FitOptions", "OwnFitOptions", "open_fit", "told_fit"]

Config = TypeVar("Config", FitConfig, LayeredFitConfig, LatentFitConfig, VqFitConfig)

PATCHES, LAYERS, LATENTS, NETWORK = "patch-kmeans", "layered-kmeans", "latent-kmeans", "vq-autoencoder"
CONFIGS = {PATCHES: FitConfig, LAYERS: LayeredFitConfig, LATENTS: LatentFitConfig, NETWORK: VqFitConfig}
FILES = {PATCHES: (), LAYERS: (), LATENTS: ("encoder", "decoder"), NETWORK: ("perceptual_weights",)}
"""Options of a kind that its config does not hold, because weights and not their places are part of a tokenizer."""


IDS = {PATCHES: "patch codes, which keep how images look", LAYERS: "ids for recognition, which decode to a blur"}
"""What the kinds that `tokenize` fits itself are good for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnFitOptions:
    """The options of the fit that `tokenize` and `plan` make themselves. None was not given, and stands for the default of the kind."""

    kinds: ClassVar[tuple[str, ...]] = (PATCHES, LAYERS)
    elsewhere: ClassVar[str] = ". The other kinds are fitted with `tokenshards fit-tokenizer` and given with --tokenizer"

    kind: str | None = None
    sample: int | None = None
    seed: int | None = None
    size: int | None = None
    levels: int | None = None
    codes: int | None = None
    patch: int | None = None
    site: int | None = None
    beam: int | None = None

    def __post_init__(self) -> None:
        kind = PATCHES if self.kind is None else self.kind
        if kind not in self.kinds:
            expected = f"--kind is {shorten(kind)}; expected one of {', '.join(self.kinds)}"
            if kind.partition(":")[0] in self.kinds:  # as `compare` takes it
                raise ConfigError(f"{expected}, and its options on their own, such as --codes 512")
            raise ConfigError(f"{expected}{self.elsewhere}")
        for option in fields(self)[1:]:
            value = getattr(self, option.name)
            if value is not None and not _takes(kind, option.name):
                name = f"--{option.name.replace('_', '-')}"
                of = ", ".join(kind for kind in self.kinds if _takes(kind, option.name))
                known = f"--kind is {kind}. Leave one out"
                if self.kind is None:
                    known = f"without --kind it is {kind}. Give the kind, or leave {name} out"
                raise ConfigError(f"{name} is {shorten(value)}, which belongs to --kind {of}; {known}")

    def config(self, of: type[Config]) -> Config:
        """Return the config of a kind with the given options."""
        named = {field.name: getattr(self, field.name, None) for field in fields(of)}
        return of(**{name: value for name, value in named.items() if value is not None})

    def own_config(self) -> OwnFitConfig:
        """Return the config of the kind that was chosen among those that `tokenize` fits itself."""
        return self.config(LayeredFitConfig) if self.kind == LAYERS else self.config(FitConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions(OwnFitOptions):
    """The options of `fit-tokenizer` for all kinds."""

    kinds: ClassVar[tuple[str, ...]] = tuple(CONFIGS)
    elsewhere: ClassVar[str] = ""

    kind: str = PATCHES
    encoder: str | None = None
    decoder: str | None = None
    mirrored: bool | None = None
    quantizer: str | None = None
    code_width: int | None = None
    width: int | None = None
    depth: int | None = None
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    perceptual: str | None = None
    perceptual_weights: str | None = None
    perceptual_weight: float | None = None


def _takes(kind: str, option: str) -> bool:
    return option in FILES[kind] or option in {field.name for field in fields(CONFIGS[kind])}


def told_fit(config: OwnFitConfig, about: str) -> str:
    """Return what a run says of its fit: what it fits, `about` what, and how to get the other kind."""
    chosen, other = (LAYERS, PATCHES) if isinstance(config, LayeredFitConfig) else (PATCHES, LAYERS)
    comma = "," if about else ""
    return f"no --tokenizer given: fitting {IDS[chosen]}{comma}{about} ({IDS[other]}: --kind {other}) …"


@dataclass(frozen=True, slots=True)
class Fit:
    """Steps of a fit: `run` makes the tokenizer, `done` cleans up after the tokenizer is saved."""

    run: Callable[[ImageSource, list[PlanRow]], FittedTokenizer]
    done: Callable[[], None] = lambda: None


def open_fit(options: FitOptions, *, out: Store, storage_options: Mapping[str, Any], say: Callable[[str], None]) -> Fit:
    """Return the steps that fit a tokenizer. Weights are read and packages imported now, before a listing that may take long.

    `out` is the place of the tokenizer, where a stopped training continues. Raises ConfigError for a value out of range or a missing
    package, TokenizerError for weights that do not fit.
    """
    if options.kind == PATCHES:
        return Fit(functools.partial(fit_tokenizer, config=options.config(FitConfig)))
    if options.kind == LAYERS:
        return Fit(functools.partial(fit_layered_tokenizer, config=options.config(LayeredFitConfig)))
    if options.kind == NETWORK:
        return _network_fit(options, out, storage_options, say)
    from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import open_encoder  # loads torch

    if options.encoder is None:
        raise ConfigError("--encoder is missing; expected the weights of a TAESD-family encoder for --kind latent-kmeans")
    config = options.config(LatentFitConfig)
    encoder = open_encoder(options.encoder, options.decoder, storage_options)
    return Fit(functools.partial(fit_latent_tokenizer, config=config, encoder=encoder))


def _network_fit(options: FitOptions, out: Store, storage_options: Mapping[str, Any], say: Callable[[str], None]) -> Fit:
    from tokenshards.pipeline.tokenizers.fitted.quantizers import quantizer_library  # loads torch
    from tokenshards.pipeline.tokenizers.fitted.training_state import TrainingState

    if options.levels is None and options.quantizer not in (None, "vq"):
        options = replace(options, levels=1)
    config = options.config(VqFitConfig)
    model, weights, features = config.perceptual, options.perceptual_weights, None
    if (model is None) != (weights is None):
        raise ConfigError(
            f"--perceptual is {shorten(model)} and --perceptual-weights {shorten(weights)}; expected both or none: "
            "a timm model and the file of its weights"
        )
    quantizer_library()
    if model is not None and weights is not None:
        from tokenshards.pipeline.tokenizers.fitted.perceptual import open_perceptual

        features = open_perceptual(model, weights, storage_options)
    state = TrainingState(out)

    def fit(source: ImageSource, rows: list[PlanRow]) -> FittedTokenizer:
        return fit_vq_tokenizer(source, rows, config, state=state, features=features, on_epoch=lambda report: say(_line(report, config)))

    return Fit(fit, done=state.clear)


def _line(report: Mapping[str, Any], config: VqFitConfig) -> str:
    used = " + ".join(f"{share:.0%}" for share in report["usage_share"])
    return (
        f"epoch {report['epoch']} of {config.epochs}: PSNR {report['psnr_db']:.2f} dB on held-out images, {used} of the codes used, "
        f"{report['images_per_second']:,.0f} images/s"
    )
