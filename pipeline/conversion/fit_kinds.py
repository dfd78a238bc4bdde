"""The kinds of tokenizer that `fit-tokenizer` can make: options and fit of each kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenshards.pipeline.conversion.fit import FittedTokenizer, fit_latent_tokenizer, fit_tokenizer, fit_vq_tokenizer
from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.config import FitConfig, LatentFitConfig, VqFitConfig

__all__ = ["ALL_OPTIONS", "OPTIONS", "Fit", "open_fit"]


@dataclass(frozen=True, slots=True)
class Fit:
    """Steps of a fit: `run` makes the tokenizer, `done` cleans up after the tokenizer is saved."""

    run: Callable[[ImageSource, list[PlanRow]], FittedTokenizer]
    done: Callable[[], None] = lambda: None


PATCHES, LATENTS, NETWORK = "patch-kmeans", "latent-kmeans", "vq-autoencoder"
_SHARED = ("size", "levels", "codes")
_TRAINING = ("epochs", "batch", "learning_rate", "perceptual", "perceptual_weights", "perceptual_weight")
OPTIONS = {
    PATCHES: (*_SHARED, "patch", "beam"),
    LATENTS: (*_SHARED, "encoder", "decoder", "mirrored"),
    NETWORK: (*_SHARED, "patch", "quantizer", "code_width", "width", "depth", *_TRAINING),
}
"""Kind -> its options, besides sample and seed."""
ALL_OPTIONS = frozenset(option for options in OPTIONS.values() for option in options)


def open_fit(
    kind: str,
    given: Mapping[str, Any],
    *,
    sample: int,
    seed: int,
    out: Store,
    storage_options: Mapping[str, Any],
    say: Callable[[str], None],
) -> Fit:
    """Return the steps that fit a tokenizer of a kind. Weights are read now, before a listing that may take long.

    `given` holds the options that the user gave. `out` is the place of the tokenizer, where a stopped training continues. Raises
    ConfigError for an unknown kind, an option of another kind or a value out of range, TokenizerError for weights that do not fit.
    """
    if kind not in OPTIONS:
        raise ConfigError(f"--kind is {shorten(kind)}; expected one of {', '.join(OPTIONS)}")
    for option, value in given.items():
        if option not in OPTIONS[kind]:
            of = ", ".join(name for name, options in OPTIONS.items() if option in options)
            raise ConfigError(
                f"--{option.replace('_', '-')} is {shorten(value)}, which belongs to --kind {of}; --kind is {kind}. Leave one out"
            )
    named = dict(given)
    if kind == PATCHES:
        return Fit(functools.partial(fit_tokenizer, config=FitConfig(sample=sample, seed=seed, **named)))
    if kind == LATENTS:
        from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import open_encoder  # loads torch

        encoder, decoder = named.pop("encoder", None), named.pop("decoder", None)
        if encoder is None:
            raise ConfigError("--encoder is missing; expected the weights of a TAESD-family encoder for --kind latent-kmeans")
        config = LatentFitConfig(sample=sample, seed=seed, **named)
        return Fit(functools.partial(fit_latent_tokenizer, config=config, encoder=open_encoder(encoder, decoder, storage_options)))
    return _network_fit(named, sample, seed, out, storage_options, say)


def _network_fit(
    named: dict[str, Any], sample: int, seed: int, out: Store, storage_options: Mapping[str, Any], say: Callable[[str], None]
) -> Fit:
    from tokenshards.pipeline.tokenizers.fitted.training_state import TrainingState  # loads torch

    weights = named.pop("perceptual_weights", None)
    if named.get("quantizer", "vq") != "vq":
        named.setdefault("levels", 1)
    config = VqFitConfig(sample=sample, seed=seed, **named)
    if (config.perceptual is None) != (weights is None):
        raise ConfigError(
            f"--perceptual is {shorten(config.perceptual)} and --perceptual-weights {shorten(weights)}; expected both or none: "
            "a timm model and the file of its weights"
        )
    features = None
    if config.perceptual is not None and weights is not None:
        from tokenshards.pipeline.tokenizers.fitted.perceptual import open_perceptual

        features = open_perceptual(config.perceptual, weights, storage_options)
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
