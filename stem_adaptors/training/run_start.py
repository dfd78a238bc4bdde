"""The start of a run, new or resumed: what is recorded, what must stay the same, and which recorded choices are kept."""

from __future__ import annotations

from dataclasses import replace

import torch

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.manifest import MANIFEST_POINTER
from tokenshards.stem_adaptors.augment import mix_group_size, mixes
from tokenshards.stem_adaptors.config import DRAWS
from tokenshards.stem_adaptors.data.label_maps import map_format
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.objectives import OBJECTIVES
from tokenshards.stem_adaptors.ranks import Ranks
from tokenshards.stem_adaptors.training.run_directory import RUN_JSON, Run, load_run, statistics_of
from tokenshards.stem_adaptors.training.training_request import TrainRequest

__all__ = ["is_there", "lengthen", "mixing_note", "recorded_run", "run_for"]


def is_there(request: TrainRequest, name: str, ranks: Ranks, device: torch.device) -> bool:
    """Whether the main rank sees the object. Only the main rank writes, so another rank might look after that write."""
    return ranks.any(ranks.is_main and request.out.info(name) is not None, device)


def recorded_run(request: TrainRequest, ranks: Ranks, device: torch.device) -> Run | None:
    """Return the run to continue, or None for a new run.

    Raises ConfigError where a run exists and the request does not continue it, and where a dataset lies: a run would replace its tokenizer.
    """
    out = request.out
    if not is_there(request, RUN_JSON, ranks, device):
        if is_there(request, MANIFEST_POINTER, ranks, device):
            raise ConfigError(f"{out.url} holds a dataset; expected an empty place for the run. Give another --out")
        return None
    if not request.resume:
        raise ConfigError(f"{out.url} already holds a run. Add --resume to continue it, or give another --out")
    recorded = load_run(out)
    if recorded.data.get("imported"):
        raise ConfigError(
            f"{out.url} holds imported weights and no training to continue. To train from them, give --pretrained {out.url} and "
            "another --out"
        )
    return recorded


def run_for(request: TrainRequest, loader: TokenLoader, recorded: Run | None, ranks: Ranks) -> Run:
    """Return the run of a request. A resumed run keeps two choices of its first start: the rules of random draws and the mix groups."""
    dataset, augment = request.dataset, request.augment
    if recorded is None:
        _require_even_pieces(request.loader.batch_size, ranks.world_size, request.train.accumulate)
    if augment.mix_group is None:
        chosen = mix_group_size(request.loader.batch_size, ranks.world_size * request.train.accumulate)
        augment = replace(augment, mix_group=chosen if recorded is None else recorded.augment.mix_group)
        if recorded is None and not chosen and mixes(augment):
            raise ConfigError(_uneven_shares(request.loader.batch_size, ranks.world_size))
    draws = DRAWS if recorded is None else recorded.draws
    # Another batch or other parts of it are refused, with a sentence on them, where the recorded run is compared.
    same_batch = recorded is None or (recorded.loader.batch_size, recorded.train.accumulate) == (
        request.loader.batch_size,
        request.train.accumulate,
    )
    if augment.mix_group and draws > 1 and mixes(augment) and same_batch:
        _require_whole_groups(augment.mix_group, request.loader.batch_size, ranks.world_size, request.train.accumulate)
    state, kind = loader.state_dict(), OBJECTIVES[request.objective]
    # A resumed run must find these unchanged: the data, identified by digests, and the source of the initial weights.
    digests = {name: state[name] for name in ("manifest", "subset", "mix_weights")}
    return Run(
        model=request.model,
        augment=augment,
        loader=request.loader,
        train=request.train,
        spec=dataset.spec,
        classes=kind.classes_of(request.data),
        statistics=None if request.model.raw_embeddings else statistics_of(dataset),
        data={**digests, "url": dataset.store.url, "pretrained": request.pretrained},
        draws=draws,
        objective=request.objective,
        mask=request.mask,
        segment=request.segment,
        maps=map_format(request.data) if kind.reads_label_maps else None,
    )


def lengthen(recorded: Run, request: TrainRequest, ranks: Ranks) -> str | None:
    """Record that a resumed run gets more epochs than it was started with; return a note for the user."""
    before, epochs = recorded.train.epochs, request.train.epochs
    if epochs == before:
        return None
    if ranks.is_main:
        replace(recorded, train=replace(recorded.train, epochs=epochs)).save(request.out, request.dataset)
    return f"{epochs} epochs in place of {before}: from here on the learning rate is that of a run of {epochs} epochs"


def _require_even_pieces(batch_size: int, world_size: int, accumulate: int) -> None:
    """Raise ConfigError where the parts of a batch would differ in size. torch.compile would make a program for each size."""
    if accumulate == 1 or batch_size % (world_size * accumulate) == 0:
        return
    share = batch_size // world_size
    fitting = [count for count in range(1, share + 1) if batch_size % (world_size * count) == 0]
    remedy = f"give one of {', '.join(map(str, fitting[:8]))}, or another --batch-size" if fitting else "give another --batch-size"
    raise ConfigError(
        f"train.accumulate is {accumulate}; a batch of {batch_size} on {world_size} processes cannot be cut into so many equal parts: "
        f"{remedy}"
    )


def _uneven_shares(batch_size: int, world_size: int) -> str:
    near = batch_size - batch_size % world_size
    sizes = " or ".join(str(size) for size in (near, near + world_size) if size)
    return (
        f"a batch of {batch_size} images cannot be shared evenly by {world_size} processes, so no mix group lies whole in one of them: "
        f"give --batch-size {sizes}, or --set augment.mix_group=0, which mixes the images that each process has; the result then depends "
        "on their number"
    )


def _require_whole_groups(size: int, batch_size: int, world_size: int, accumulate: int) -> None:
    """Raise ConfigError where a mix group would lie in two shares of a batch: other samples would be mixed with each other."""
    if batch_size % (size * world_size * accumulate) == 0:
        return
    groups = batch_size // (size * accumulate)
    fitting = [count for count in range(1, groups + 1) if batch_size % (size * accumulate * count) == 0]
    parts = f" in {accumulate} parts each" if accumulate > 1 else ""
    remedy = f"start {' or '.join(map(str, fitting[-6:]))} of them" if fitting else "give another augment.mix_group"
    raise ConfigError(
        f"CutMix, Mixup and ColorAdapt mix the images of groups of {size}; {world_size} processes{parts} do not get whole groups of a "
        f"batch of {batch_size}, so the result would be another one: {remedy}"
    )


def mixing_note(run: Run, ranks: Ranks) -> str | None:
    """Return a note for the user where the samples are mixed differently than on another number of ranks, by their own choice."""
    size, batch_size = run.augment.mix_group or 0, run.loader.batch_size
    shares = ranks.world_size * run.train.accumulate
    if not mixes(run.augment):
        return None
    if size == 1:
        return "note: mix groups hold one image each, because a process gets one at a time: CutMix, Mixup and ColorAdapt change nothing"
    by_shares = batch_size % (size * shares) > 0 if size else run.draws > 1 and shares > 1
    if not by_shares:
        return None
    return (
        f"note: {shares} shares of a batch of {batch_size} do not hold whole mix groups of {size or 'one size'}; CutMix, Mixup and "
        "ColorAdapt mix what each share has, so the result is not that of another number of processes"
    )
