"""One training run of the accuracy benches, many such runs in processes of one thread each, and the statistics of their differences.

Every side yields the same kind of tensor: a map [B, D, h, w], standardised per channel. All sides share mirroring, crop, noise, CutMix,
network, optimiser and schedule. Pixels (D = 3) are read from an array, at the stored resolution, and cropped to 64 x 64. Tokens come from
shards through `TokenLoader`, augmentations of ids, which pixels do not have, and `TokenEmbedding`. A code of patch k-means is a patch, so
its vector is laid out as that patch, and all is as with pixels. Of `IdSide` the network gets the embeddings themselves, on their grid; the
stem adaptor brings them to the 16 x 16 sites of the first stage.

Shapes: B images of a batch, N held-out images, S seeds, D values of a patch.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from byte_budgets import SIDE, split_names
from read_throughput import allow_torchvision
from torch import Tensor, nn

from tokenshards.pipeline.shards import open_dataset
from tokenshards.stem_adaptors.augment import SampleKeys, TokenTransform, crops, embed_ops, soft_targets
from tokenshards.stem_adaptors.augment.token_model import Lookup
from tokenshards.stem_adaptors.comparison.local_runs import end_with_parent
from tokenshards.stem_adaptors.comparison.paired import packed, unpacked
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding, embedding_statistics
from tokenshards.stem_adaptors.training.parameter_groups import parameter_groups
from tokenshards.stem_adaptors.training.schedule import learning_rate

EVALUATION_BATCH = 100
ID_SIDES = ("recognition", "latent-ids")
"""Kinds of side whose ids the network gets."""

AUGMENT = AugmentConfig(
    flip_prob=0.5,
    crop_share=1.0,
    crop_scale_min=0.35,
    noise_prob=0.5,
    noise_channel_std=0.2,
    noise_std=0.2,
    cutmix_prob=0.5,
    synonym_prob=0.0,
    swap_prob=0.0,
)
"""SeiT's list, with strengths for 3,000 images and some minutes. Synonyms and block swap, which act on tokens alone, are off: runs on
held-out images at 64 bytes were 0.7 to 0.8 points better without them. In the ablation, at 512 bytes, the difference is not clear of
zero."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How every side is trained."""

    model: str = "resnet18"
    channels: tuple[int, ...] = (32, 64, 128, 128)
    """Widths of the four stages, one block each; the first stage works on 16 x 16 sites."""
    epochs: int = 30
    batch_size: int = 50
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.15
    label_smoothing: float = 0.1
    clip_grad_norm: float = 1.0
    augment: AugmentConfig = field(default_factory=lambda: AUGMENT)


Batches = Iterator[tuple[Tensor, Tensor, SampleKeys]]


class PixelSide:
    """Images from `SIDE.npz`."""

    channels, grid = 3, (SIDE, SIDE)

    def __init__(self, work: Path, side: str, recipe: Recipe, seed: int) -> None:
        stored, names = np.load(work / f"{side}.npz"), split_names(work)
        self.classes = sorted({name.partition("/")[0] for name in names["train"]})
        train_NHWC = torch.from_numpy(stored["train"]).float()
        self._mean, self._std = train_NHWC.mean((0, 1, 2)), train_NHWC.std((0, 1, 2))
        self._train, self._held_out = (self._standardised(torch.from_numpy(stored[part])) for part in ("train", "held_out"))
        self._labels, self.labels_N = (
            torch.tensor([self.classes.index(name.partition("/")[0]) for name in names[part]]) for part in ("train", "held_out")
        )
        self._seed, self._size = seed, recipe.batch_size
        self.steps = len(self._train) // recipe.batch_size

    def _standardised(self, pixels_NHWC: Tensor) -> Tensor:
        return ((pixels_NHWC.float() - self._mean) / self._std).movedim(-1, 1)

    def epoch(self, epoch: int) -> Batches:
        """Yield images, labels and the keys of their random numbers."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order_N = torch.randperm(len(self._train), generator=generator)
        for start in range(0, self.steps * self._size, self._size):
            rows_B = order_N[start : start + self._size]
            yield self._train[rows_B], self._labels[rows_B], SampleKeys(self._seed, epoch, torch.arange(start, start + self._size))

    def held_out(self) -> Iterator[Tensor]:
        """Yield the held-out images in the order of `labels_N`."""
        return iter(self._held_out.split(EVALUATION_BATCH))


class TokenSide:
    """Images from the shards of `SIDE/train` and `SIDE/held_out`."""

    channels, grid = 3, (SIDE, SIDE)

    def __init__(self, work: Path, side: str, recipe: Recipe, seed: int) -> None:
        train, held_out = (open_dataset(str(work / side / part)) for part in ("train", "held_out"))
        self.classes = [str(name) for name in train.classes]
        config = LoaderConfig(batch_size=recipe.batch_size, seed=seed, cache_dir=str(work / "cache"), cache_gb=4.0, prefetch_batches=2)
        self._loader, self.steps = TokenLoader(train, config), 0
        self.steps = len(self._loader)
        # Mirrored sites would hold unmirrored patches. So the laid-out image is mirrored, as pixels are.
        on_ids = {name: getattr(recipe.augment, name) for name in ("synonym_prob", "synonym_replace_prob", "synonym_count", "swap_prob")}
        augment = replace(AugmentConfig.off(), crop_share=1.0, synonym_metric=recipe.augment.synonym_metric, **on_ids)
        self._transform = TokenTransform(train.spec, train.codebook(), augment, len(self.classes))
        self._embedding = TokenEmbedding(train.spec, train.codebook(), standardise=self._statistics(train))
        self._open(train)
        place = {name: row for row, name in enumerate(split_names(work)["held_out"])}
        ids, rows, labels = [], [], []
        for batch in held_out.batches(EVALUATION_BATCH):
            ids.append(torch.from_numpy(batch.ids_BLQ.astype(np.int32)))
            rows += [place[name] for name in batch.sample_ids]
            labels += [self.classes.index(str(held_out.classes[index])) for index in batch.labels_B]
        order_N = torch.tensor(rows).argsort()
        self._ids_NLQ, self.labels_N = torch.cat(ids)[order_N], torch.tensor(labels)[order_N]

    def _open(self, train: Any) -> None:
        self._patch = int(train.spec.config["patch"])

    def _statistics(self, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return one mean and deviation per colour, repeated for the values of a patch, so that tokens are standardised like pixels."""
        mean_D, std_D = embedding_statistics(dataset)
        mean_P3, std_P3 = mean_D.reshape(-1, 3), std_D.reshape(-1, 3)
        deviation_3 = np.sqrt(np.square(std_P3).mean(axis=0) + mean_P3.var(axis=0))
        return np.tile(mean_P3.mean(axis=0), len(mean_P3)), np.tile(deviation_3, len(mean_P3))

    def _laid_out(self, ids_BLQ: Tensor) -> Tensor:
        """Return [B, 3, h, w]: the vector of each site, laid out as the patch that it is."""
        x_BHWD, patch = self._embedding(ids_BLQ).movedim(1, -1), self._patch
        batch, height, width, _ = x_BHWD.shape
        x = x_BHWD.reshape(batch, height, width, patch, patch, 3).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height * patch, width * patch, 3).movedim(-1, 1)

    def epoch(self, epoch: int) -> Batches:
        """Yield images, labels and the keys of their random numbers."""
        for batch in self._loader.epoch(epoch):
            ids_BLQ = self._transform.state(Lookup(self._embedding), batch).ids_BLQ
            yield self._laid_out(ids_BLQ), batch.labels_B, SampleKeys.from_batch(batch)

    def held_out(self) -> Iterator[Tensor]:
        """Yield the held-out images in the order of `labels_N`."""
        return (self._laid_out(ids_BLQ) for ids_BLQ in self._ids_NLQ.split(EVALUATION_BATCH))


class IdSide(TokenSide):
    """Embeddings of the ids in the shards of `SIDE/train` and `SIDE/held_out`, on their grid."""

    def _open(self, train: Any) -> None:
        self.channels, self.grid = self._embedding.channels, self._embedding.grid

    def _statistics(self, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
        return embedding_statistics(dataset)

    def _laid_out(self, ids_BLQ: Tensor) -> Tensor:
        return self._embedding(ids_BLQ)


def side_of(work: Path, side: str, recipe: Recipe, seed: int) -> PixelSide | TokenSide:
    """Open a prepared side."""
    kind = PixelSide if not (work / side).is_dir() else IdSide if side.partition("_")[0] in ID_SIDES else TokenSide
    return kind(work, side, recipe, seed)


def enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the whole maps in this size."""
    box_B4 = torch.tensor([[0, 0, x.shape[2], x.shape[3]]]).expand(len(x), 4)
    return x if tuple(x.shape[2:]) == size else crops.resample(x, box_B4, size)


def augmented(x: Tensor, targets_BC: Tensor, keys: SampleKeys, config: AugmentConfig, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mirror, crop to `size`, add noise, cut and mix."""
    mirrored_B111 = keys.chosen("flip", config.flip_prob)[:, None, None, None]
    x = torch.where(mirrored_B111, x.flip(-1), x)
    if config.crop == "rrc":
        grid, scales = (x.shape[-2], x.shape[-1]), {"scale_min": config.crop_scale_min, "ratio_max": config.crop_ratio_max}
        x = crops.resample(x, crops.crop_boxes(keys, grid, **scales), size)
    else:
        x = enlarged(x, size)
    if config.noise_prob > 0:
        stds = {"channel_std": config.noise_channel_std, "std": config.noise_std}
        x = embed_ops.add_noise_(x, keys, keys.chosen("noise", config.noise_prob), mask=None, **stds)
    if float(keys[:1].uniform("mix")[0, 0]) < config.cutmix_prob:
        lam = embed_ops.beta_quantiles(config.cutmix_alpha)[keys[:1].integers("lambda", 1 << 16)[0]]
        sides_12 = (torch.tensor([x.shape[-2:]]) * (1 - lam).sqrt()).long()
        x, targets_BC = embed_ops.cutmix_(x, targets_BC, embed_ops.cutmix_box(keys, (x.shape[-2], x.shape[-1]), sides_12))
    return x, targets_BC


def build_model(recipe: Recipe, classes: int, seed: int, channels: int, grid: tuple[int, ...]) -> nn.Module:
    allow_torchvision()
    from tokenshards.stem_adaptors.models.timm_backbones import build_timm_backbone

    options = {
        "layers": (1,) * len(recipe.channels),
        "channels": recipe.channels,
        "stem_width": recipe.channels[0],
        "pretrained_cfg_overlay": {"input_size": (3, SIDE, SIDE)},  # the size it is made for decides what its stem does
    }
    torch.manual_seed(seed)
    model = build_timm_backbone(recipe.model, channels, grid, classes, options=options)
    return model.to(memory_format=torch.channels_last)


def train_once(work: Path, side: str, seed: int, recipe: Recipe) -> dict[str, Any]:
    """Train on one side; return which held-out images were classified correctly, and the seconds that training took."""
    torch.set_num_threads(1)
    start, cpu = time.perf_counter(), time.process_time()
    data = side_of(work, side, recipe, seed)
    classes = len(data.classes)
    model = build_model(recipe, classes, seed, data.channels, data.grid)
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe.weight_decay), lr=recipe.lr, fused=True)
    total, step, losses = recipe.epochs * data.steps, 0, 0.0
    for epoch in range(recipe.epochs):
        model.train()
        losses = 0.0
        for images, labels_B, keys in data.epoch(epoch):
            rate = learning_rate(
                step, total_steps=total, warmup_steps=round(recipe.warmup_share * total), peak=recipe.lr, floor=recipe.lr / 100
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            x, targets_BC = augmented(images, soft_targets(labels_B, classes, recipe.label_smoothing), keys, recipe.augment, data.grid)
            logits_BC = model(x.contiguous(memory_format=torch.channels_last))
            loss = -(targets_BC * logits_BC.log_softmax(dim=1)).sum(dim=1).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            losses += float(loss.detach())
    model.eval()
    with torch.no_grad():
        found_N = torch.cat(
            [model(enlarged(x, data.grid).contiguous(memory_format=torch.channels_last)).argmax(1) for x in data.held_out()]
        )
    right_N = (found_N == data.labels_N).numpy()
    return {
        "right": packed(right_N),
        "images": len(right_N),
        "top1": round(float(right_N.mean()), 5),
        "train_loss": round(losses / data.steps, 4),
        "steps": total,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@dataclass(frozen=True)
class Job:
    """One run: its results go to `NAME.SEED.json`."""

    name: str
    side: str
    seed: int
    recipe: Any
    """A dataclass, such as Recipe."""
    data: str
    """Digest of the prepared data: results of other data are not reused."""

    @property
    def key(self) -> str:
        settings = {"side": self.side, "seed": self.seed, "recipe": asdict(self.recipe), "data": self.data}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def path(self, work: Path) -> Path:
        return work / "runs" / f"{self.name}.{self.seed}.json"

    def result(self, work: Path) -> dict[str, Any] | None:
        """Return the result of an earlier run with the same settings, or None."""
        path = self.path(work)
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return found if found["key"] == self.key else None


Train = Callable[[Path, str, int, Any], dict[str, Any]]
"""Trains (work, side, seed, recipe) and returns what was found, `seconds` among it."""


def _work(work: Path, job: Job, train: Train) -> dict[str, Any]:
    found = {"key": job.key, "name": job.name, "side": job.side, "seed": job.seed, **train(work, job.side, job.seed, job.recipe)}
    path = job.path(work)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    temporary.replace(path)
    return found


def run_jobs(
    work: Path, jobs: Sequence[Job], workers: int, *, train: Train = train_once, figure: str = "top1"
) -> dict[tuple[str, int], dict[str, Any]]:
    """Run every job without a result, seed by seed; return the results by name and seed. `figure` of each is printed."""
    results = {(job.name, job.seed): found for job in jobs if (found := job.result(work)) is not None}
    left = [job for job in jobs if (job.name, job.seed) not in results]
    if results:
        print(f"{len(results)} runs were done before, {len(left)} are left")
    for found in in_processes(_work, [(work, job, train) for job in left], workers):
        results[found["name"], found["seed"]] = found
        name = f"{len(results)}/{len(jobs)} {found['name']} seed {found['seed']}"
        print(f"{name}: {figure} {found[figure]:.4f}, {found['seconds']:.0f} s", flush=True)
    return results


def in_processes(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    """Yield results as they arrive from fresh processes of one thread each."""
    if not arguments:
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool:
        waiting = [pool.submit(function, *values) for values in arguments]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def correctness(results: dict[tuple[str, int], dict[str, Any]], name: str, seeds: Sequence[int]) -> np.ndarray:
    """Return float [S, N]: 1 where a held-out image was classified correctly."""
    rows = [results[name, seed] for seed in seeds]
    return unpacked([row["right"] for row in rows], rows[0]["images"])
