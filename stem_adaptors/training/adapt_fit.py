"""Fits TokenAdapt's two networks on images in memory: pairs (ids of x, ids of A(x)) for random maps A, made while the networks learn.

The same images and settings give the same networks, also after a kill: on a CPU to the bit. Each random number belongs to (seed, view,
image). The state is written after each epoch and at least once a minute.

Shapes: M images, B of them in a batch, H and W pixels, C = 3 colours, L sites, N sites of the result, Q ids per site, D channels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenshards.pipeline.canonical import canonical_json, keyed_hash64, sha256_hex
from tokenshards.pipeline.errors import ConfigError, TrainingError
from tokenshards.pipeline.fault_injection import crash_point
from tokenshards.pipeline.half_cosine import half_cosine
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.augment.adapt_maps import random_colours, random_maps, resampled_pixels
from tokenshards.stem_adaptors.augment.adapt_networks import TokenAdapter
from tokenshards.stem_adaptors.augment.adapt_sizes import HEAD_WIDTH
from tokenshards.stem_adaptors.augment.adapt_start import start_from_codes, start_with_mirror
from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.precision import autocast, precision_of
from tokenshards.stem_adaptors.training.adapt_fit_config import AdaptFitConfig
from tokenshards.stem_adaptors.training.checkpoints import Checkpoint, load_optimizer, optimizer_tensors, read_checkpoint, write_checkpoint

__all__ = ["STATE_NAME", "AdaptFit", "Encode", "central_ids"]

Images = npt.NDArray[np.uint8]
Ids = npt.NDArray[Any]
Encode = Callable[[Images], Ids]
"""A tokenizer: uint8 [B, H, W, C], prepared pixels -> ids [B, L, Q]."""

STATE_NAME = "fit.checkpoint.safetensors"
SAVE_SECONDS = 60.0
HELD_OUT_SHARE = 16
MOST_HELD_OUT = 256
ENCODED_TOGETHER = 64
MOST_MIRRORED = 256
"""Images whose mirror images are samples too: they show what a mirror does to code vectors, and few images are worth twice as many."""
CODES_SHARE, CELLS_SHARE, TABLES_SHARE = 0.002, 0.3, 5.0
"""Learning rates as shares of the transformers'. The path of code vectors begins in the right place, and a few large steps of Adam would
lose that for long. A row of a table is read by few sites."""
WARM_UP_SHARE = 0.05
WEIGHT_DECAY = 0.01
MAX_GRADIENT = 1.0


class AdaptFit:
    """A fit. `images`: content hash and uint8 pixels, prepared for the tokenizer, of M different images in any order."""

    def __init__(
        self,
        spec: TokenizerSpec,
        tables: Tables,
        encode: Encode,
        images: Sequence[tuple[str, Images]],
        config: AdaptFitConfig,
        *,
        device: torch.device,
        held_out: int | None = None,
    ) -> None:
        """`held_out`: images to measure on, by default one in 16. Raises ConfigError where a part does not fit the tokenizer, and for
        fewer than 2 images."""
        if len(images) < 2:
            raise ConfigError(
                f"fit-tokenadapt: {counted(len(images), 'image')} to fit on; expected at least 2, and some thousands to be good"
            )
        self.config, self.spec, self._encode, self._device = config, spec, encode, device
        chosen = sorted(images, key=lambda image: keyed_hash64(str(config.seed), image[0]))
        self.held_out = min(MOST_HELD_OUT, max(1, len(chosen) // HELD_OUT_SHARE)) if held_out is None else held_out
        self.names = [name for name, _ in chosen]
        pixels_MHWC = np.stack([pixels for _, pixels in chosen])
        self.held_out_MHWC, self._pixels_MHWC = pixels_MHWC[: self.held_out], pixels_MHWC[self.held_out :]
        self.batch = min(config.batch, len(self._pixels_MHWC))
        self.steps = len(self._pixels_MHWC) // self.batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_hash64(str(config.seed), "start"))
            self.adapter = TokenAdapter(spec, tables, config.sizes(spec.layout.grid))
        # Other epochs go on with a stopped fit, as in `train`: from there on the rate is that of the new number.
        made_of = [{**asdict(config), "epochs": None}, asdict(self.adapter.sizes), spec.fingerprint, self.held_out, self.names]
        self.digest = sha256_hex(canonical_json(made_of))
        self.adapter.to(device)
        self._optimizer = torch.optim.AdamW(_groups(self.adapter, config.learning_rate), betas=(0.9, 0.95))
        self._views: dict[tuple[int, int], Ids] = {}
        self.step = 0
        self.reports: list[dict[str, Any]] = []
        self._loss = 0.0

    @property
    def training_images(self) -> int:
        """Images that the networks learn from."""
        return len(self._pixels_MHWC)

    def macs_of_step(self) -> float:
        """Return about how many multiplications a training step takes: three times a forward pass."""
        sizes = self.adapter.sizes
        inner, total = sizes.heads * HEAD_WIDTH, 0
        for (rows, columns), layers in ((self.adapter.grid, 5), (sizes.out_grid, (2 + 4 * sizes.reach) ** 2)):
            sites = rows * columns
            total += sites * (
                sizes.width * (4 * inner + 2 * sizes.hidden + layers * self.adapter.conversion.enter.in_features) + 2 * sites * inner
            )
        return 3.0 * self.batch * (total + math.prod(sizes.out_grid) * sizes.width * sum(self.spec.vocabulary))

    def run(self, state: Store | None, on_epoch: Callable[[dict[str, Any]], None] = lambda report: None) -> None:
        """Train to the end, from the state in the store where there is one. `on_epoch` gets the report of each epoch.

        Raises ConfigError for the state of another fit, TrainingError where the loss is not a number.
        """
        self._ids_MLQ = self._encoded(self._pixels_MHWC)
        self._start()
        if state is not None:
            self._load(state)
        saved = time.monotonic()
        for epoch in range(self.step // self.steps, self.config.epochs):
            began, first = time.monotonic(), self.step
            order_M = np.random.default_rng(keyed_hash64(str(self.config.seed), f"epoch {epoch}")).permutation(len(self._pixels_MHWC))
            for place in range(self.step % self.steps, self.steps):
                self._loss += self._train_step(epoch, order_M[place * self.batch : (place + 1) * self.batch])
                self.step += 1
                crash_point("after-adapt-step")
                if state is not None and time.monotonic() - saved >= SAVE_SECONDS and place + 1 < self.steps:
                    self._save(state)
                    saved = time.monotonic()
            report = {"epoch": epoch + 1, "loss": round(self._loss / self.steps, 5), "token_accuracy": self._held_out_accuracy()}
            self.reports.append(report)
            self._loss = 0.0
            if state is not None:
                self._save(state)
                saved = time.monotonic()
            on_epoch({**report, "images_per_second": (self.step - first) * self.batch / max(1e-9, time.monotonic() - began)})

    def _train_step(self, epoch: int, chosen_B: npt.NDArray[np.int64]) -> float:
        view = epoch % self.config.views if self.config.views else epoch
        maps_B23, colours_B3, targets_BNQ = self._pairs(view, chosen_B)
        colours_B3 = None if colours_B3 is None else colours_B3.to(self._device)
        ids_BLQ, maps_B23 = self._sources(epoch // max(1, self.config.views), chosen_B, maps_B23)
        self.adapter.train()
        with autocast(self._device, precision_of("auto", self._device)):
            logits = self.adapter(ids_BLQ, maps_B23.to(self._device), targets_BNQ, colours_B3)
        losses = [F.cross_entropy(part.float().flatten(0, 1), targets_BNQ[..., q].flatten()) for q, part in enumerate(logits)]
        loss = torch.stack(losses).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.adapter.parameters(), MAX_GRADIENT)
        total = self.steps * self.config.epochs
        factor = min(1.0, (self.step + 1) / max(1.0, WARM_UP_SHARE * total)) * half_cosine(self.step / total)
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor * group["share"]
        self._optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"fit-tokenadapt: the loss is {value} at step {self.step + 1:,}; expected a finite number. Give a smaller --learning-rate "
                f"than {self.config.learning_rate:g}"
            )
        return value

    def _pairs(self, view: int, chosen_B: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the maps and colours of a view of some images, and the ids of the images that they make, [B, N, Q]."""
        keys = SampleKeys(self.config.seed, view, torch.from_numpy(chosen_B))
        maps_B23, colours_B3 = random_maps(keys, self.config.ranges, self.adapter.grid), random_colours(keys, self.config.ranges)
        missing = [place for place, image in enumerate(chosen_B) if (view, int(image)) not in self._views]
        ids: dict[int, Ids] = {}
        if missing:
            own = None if colours_B3 is None else colours_B3[missing]
            images_BHWC = resampled_pixels(torch.from_numpy(self._pixels_MHWC[chosen_B[missing]]), maps_B23[missing], own).numpy()
            ids = dict(zip(missing, central_ids(self._encode(images_BHWC), self.adapter), strict=True))
        if self.config.views:
            self._views |= {(view, int(chosen_B[place])): own for place, own in ids.items()}
        found = [ids[place] if place in ids else self._views[view, int(image)] for place, image in enumerate(chosen_B)]
        return maps_B23, colours_B3, self._tensor(np.stack(found))

    def _sources(self, again: int, chosen_B: npt.NDArray[np.int64], maps_B23: Tensor) -> tuple[Tensor, Tensor]:
        """Return ids [B, L, Q] of the images or of their mirror images, in turns, and the maps from there: twice the samples of a view."""
        mirrored_B = ((again + chosen_B) % 2 == 1) & (chosen_B < len(self._mirrored_ids_MLQ))
        ids_BLQ = self._ids_MLQ[chosen_B]  # a copy
        ids_BLQ[mirrored_B] = self._mirrored_ids_MLQ[chosen_B[mirrored_B]]
        signs_B11 = torch.from_numpy(np.where(mirrored_B, -1.0, 1.0).astype(np.float32))[:, None, None]
        return self._tensor(ids_BLQ), torch.cat([maps_B23[:, :1] * signs_B11, maps_B23[:, 1:]], dim=1)

    def _tensor(self, ids: Ids) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self._device)

    def _encoded(self, pixels_MHWC: Images) -> Ids:
        """Return the ids of whole images."""
        parts = [self._encode(pixels_MHWC[start : start + ENCODED_TOGETHER]) for start in range(0, len(pixels_MHWC), ENCODED_TOGETHER)]
        return np.concatenate(parts)

    def _start(self) -> None:
        some = self._ids_MLQ[:: max(1, len(self._ids_MLQ) // 64)]
        start_from_codes(self.adapter, self.adapter.vectors(self._tensor(some)).flatten(0, 1))
        self._mirrored_ids_MLQ = self._encoded(np.ascontiguousarray(self._pixels_MHWC[:MOST_MIRRORED, :, ::-1]))
        start_with_mirror(self.adapter, self._tensor(self._ids_MLQ[:MOST_MIRRORED]), self._tensor(self._mirrored_ids_MLQ))

    @torch.no_grad()
    def _held_out_accuracy(self) -> float:
        """Return the share of right ids over all levels, on held-out images under random maps."""
        self.adapter.eval()
        right = []
        for start in range(0, len(self.held_out_MHWC), self.batch):
            pixels_BHWC = self.held_out_MHWC[start : start + self.batch]
            keys = SampleKeys(self.config.seed, -1, torch.arange(start, start + len(pixels_BHWC)))
            maps_B23 = random_maps(keys, self.config.ranges, self.adapter.grid)
            wanted = central_ids(self._encode(resampled_pixels(torch.from_numpy(pixels_BHWC), maps_B23).numpy()), self.adapter)
            found = self.adapter.ids(self._tensor(self._encode(pixels_BHWC)), maps_B23.to(self._device)).cpu().numpy()
            right.append((found == wanted).mean(axis=(1, 2)))
        return round(float(np.concatenate(right).mean()), 5)

    def _save(self, state: Store) -> None:
        write_checkpoint(
            state,
            STATE_NAME,
            Checkpoint(
                model=self.adapter.state_dict(),
                optimizer=optimizer_tensors(self._optimizer),
                state={"step": self.step, "loss": self._loss, "digest": self.digest, "reports": self.reports},
            ),
        )

    def _load(self, state: Store) -> None:
        if state.info(STATE_NAME) is None:
            return
        found = read_checkpoint(state, STATE_NAME)
        if found.state["digest"] != self.digest:
            raise ConfigError(
                f"{state.url}/{STATE_NAME}: a fit with other options, images or another tokenizer stopped here after "
                f"{counted(len(found.state['reports']), 'epoch')}. Give the command that it was started with to continue it, another "
                "--out, or delete that file to start over"
            )
        self.adapter.load_state_dict(found.model)
        load_optimizer(self._optimizer, found.optimizer)
        self.step, self._loss, self.reports = found.state["step"], found.state["loss"], found.state["reports"]


def central_ids(ids_BLQ: Ids, adapter: TokenAdapter) -> Ids:
    """Return the ids of the central window of whole images, [B, N, Q]."""
    (height, width), (rows, columns) = adapter.grid, adapter.sizes.out_grid
    top, left = (height - rows) // 2, (width - columns) // 2
    window = ids_BLQ.reshape(len(ids_BLQ), height, width, -1)[:, top : top + rows, left : left + columns]
    return np.ascontiguousarray(window.reshape(len(ids_BLQ), rows * columns, -1))


def _groups(adapter: TokenAdapter, rate: float) -> list[dict[str, Any]]:
    """Return the parameters in groups: each with its share of the rate, and the matrices of the transformers decay."""
    shares = {
        ".beside": CODES_SHARE,
        ".before.": CODES_SHARE,
        ".leave.": CELLS_SHARE,
        ".tables.": TABLES_SHARE,
        ".sharpness.": TABLES_SHARE,
    }
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in adapter.named_parameters():
        share = next((share for part, share in shares.items() if part in name), 1.0)
        found.setdefault((share, WEIGHT_DECAY if parameter.ndim > 1 and share == 1.0 else 0.0), []).append(parameter)
    return [{"params": own, "lr": rate, "share": share, "weight_decay": decay} for (share, decay), own in found.items()]
