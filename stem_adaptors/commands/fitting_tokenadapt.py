"""The fit of TokenAdapt from a source of images to a directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from tokenshards.pipeline.canonical import keyed_hash64
from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.conversion.understand import understand
from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.errors import ConfigError, SourceError
from tokenshards.pipeline.planning.planner import Listing
from tokenshards.pipeline.records import PlanRow
from tokenshards.pipeline.sources import open_source
from tokenshards.pipeline.sources.base import ImageSource
from tokenshards.pipeline.sources.pixel_depth import settle_sixteen_bit
from tokenshards.pipeline.sources.sample import SampledImage, decoded_sample
from tokenshards.pipeline.storage.store import Store, display_url
from tokenshards.pipeline.tokenizers.base import Images, Tokenizer, describe_tokenizer
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.augment.adapt_file import AdaptFile, require_free, save_adapter
from tokenshards.stem_adaptors.training.adapt_fidelity import fidelity_of, right_ids
from tokenshards.stem_adaptors.training.adapt_fit import STATE_NAME, AdaptFit
from tokenshards.stem_adaptors.training.adapt_fit_config import AdaptFitConfig

__all__ = ["fit_tokenadapt"]

MOST_BYTES = 2 << 30
"""Most bytes of pixels held in memory."""


def fit_tokenadapt(
    src: str,
    reading: SourceConfig,
    tokenizer: Tokenizer,
    out: Store,
    config: AdaptFitConfig,
    *,
    sample: int,
    device: str,
    say: Callable[[str], None],
) -> AdaptFile:
    """Fit on up to `sample` images, and write the result. A fit that was killed continues from its state in `out`.

    Raises ConfigError where an option or the tokenizer does not fit, SourceError where no image decodes.
    """
    place, spec = choose_device(device), tokenizer.spec
    if spec.codebook is None or spec.layout.kind != "grid" or spec.layout.variable:
        raise ConfigError(
            f"--tokenizer is {describe_tokenizer(tokenizer)}; TokenAdapt needs a grid of one size and a codebook: give such a tokenizer"
        )
    require_free(out)
    source = open_source(src, reading)
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=sample, sample_seed=config.seed) as listing:
        settle_sixteen_bit(source, listing.sample)
        understand(source, replace(source.config, yes=True), say)
        images, notes = _gathered(source, listing.sample, sample, tokenizer, config.seed)
    for note in notes:
        say(f"note: {note}")
    if not images:
        raise SourceError(f"{display_url(src)}: none of {len(listing.sample)} sampled inputs holds an image that decodes. Check the source")
    fit = AdaptFit(spec, tokenizer.codebook(), lambda pixels_BHWC: tokenizer.encode(pixels_BHWC).ids_BLQ, images, config, device=place)
    for line in _understood(fit, tokenizer, out):
        say(line)
    fit.run(out, lambda report: say(_line(report, config)))
    right = right_ids(fit.adapter, spec, tokenizer.codebook(), lambda pixels: tokenizer.encode(pixels).ids_BLQ, fit.held_out_MHWC)
    counts = {"images": fit.training_images, "held_out": len(fit.held_out_MHWC), "reports": fit.reports}
    about = save_adapter(fit.adapter, spec, out, "", settings={**asdict(config), **counts}, fidelity=fidelity_of(right))
    out.delete(STATE_NAME)
    return about


def _gathered(
    source: ImageSource, rows: list[PlanRow], limit: int, tokenizer: Tokenizer, seed: int
) -> tuple[list[tuple[str, Images]], list[str]]:
    """Return content hash and prepared pixels of the images, each once, and notes for the user."""
    most = max(2, MOST_BYTES // (3 * tokenizer.spec.preprocess.size**2))
    kept: dict[str, Images] = {}
    rank: dict[str, int] = {}
    seen, failures = 0, list[str]()
    for outcome in decoded_sample(source, rows, limit, tokenizer.spec.preprocess):
        if not isinstance(outcome, SampledImage):
            failures.append(f"{outcome.sample_id}: {outcome.error}")
            continue
        seen += 1
        kept[outcome.sha256], rank[outcome.sha256] = outcome.image.pixels_HWC, keyed_hash64(str(seed), outcome.sha256)
        if len(kept) > most:
            del kept[max(kept, key=lambda name: rank[name])]
    return list(kept.items()), list(_notes(seen, len(rank), len(kept), failures))


def _notes(seen: int, different: int, kept: int, failures: list[str]) -> Iterator[str]:
    if seen > different:
        yield f"{seen - different:,} of {seen:,} sampled images are byte for byte equal to another one and count only once"
    if different > kept:
        yield f"{counted(different - kept, 'image')} left out: pixels in memory are limited to {MOST_BYTES >> 30} GB"
    if failures:
        yield f"{counted(len(failures), 'sampled input')} could not be decoded, such as {failures[0]}"


def _understood(fit: AdaptFit, tokenizer: Tokenizer, out: Store) -> Iterator[str]:
    config, sizes = fit.config, fit.adapter.sizes
    steps = fit.steps * config.epochs
    yield f"images     {fit.training_images:,} to fit on, {len(fit.held_out_MHWC):,} held out"
    yield f"tokenizer  {describe_tokenizer(tokenizer)}"
    yield f"networks   width {sizes.width}, {counted(sizes.heads, 'head')}, {fit.adapter.grid} sites become {sizes.out_grid}"
    encoded = fit.training_images * min(config.views or config.epochs, config.epochs)
    yield (
        f"cost       {counted(config.epochs, 'epoch')} of {counted(fit.steps, 'step')} of {fit.batch}: {steps * fit.macs_of_step():.2g} "
        f"multiplications, and {encoded:,} images to encode"
    )
    yield f"out        {out.url}"


def _line(report: dict[str, Any], config: AdaptFitConfig) -> str:
    return (
        f"epoch {report['epoch']} of {config.epochs}: loss {report['loss']:.3f}, {report['token_accuracy']:.1%} of the ids right on "
        f"held-out images, {report['images_per_second']:,.1f} images/s"
    )
