"""The objective of masked token modelling: a share of the patches is hidden, and their ids are predicted. No label is read.

The augmented batch is ids again (`quantise`), so that what is predicted are ids of whole sites. On a GPU nothing waits for a value.

Shapes: B samples, L sites, Q ids per site, N patches, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.augment.crops import centre_crop
from tokenshards.stem_adaptors.augment.keys import SampleKeys
from tokenshards.stem_adaptors.augment.numbers import Draw, DrawPlan, Numbers, few_on
from tokenshards.stem_adaptors.augment.token_model import DROP_PATH, Lookup
from tokenshards.stem_adaptors.augment.transform import StepInputs
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.loader import TrainingData
from tokenshards.stem_adaptors.mask_config import MaskConfig
from tokenshards.stem_adaptors.models.drop_path import draw_paths, drop_paths_of
from tokenshards.stem_adaptors.models.embedding import TokenEmbedding
from tokenshards.stem_adaptors.models.masked import MaskedTokenModel, build_masked_model
from tokenshards.stem_adaptors.models.masks import MaskDraws, Masks
from tokenshards.stem_adaptors.objectives.base import Align, Answers, Blueprint, Objective
from tokenshards.stem_adaptors.ranks import Ranks

__all__ = ["MaskedTokenMeasure", "MaskedTokenObjective"]

DROPOUT = "mask.dropout"
FIT_IMAGES = 1500
"""Samples that centroids of patches are found from."""
POOL_VECTORS, POOL_STEP, MOST_CHANNELS = 1 << 14, 32, 1 << 12
"""The dropout of a site is one of the vectors of a pool, as the noise of a site is."""


class MaskedTokenMeasure:
    """Sums of predictions of hidden ids: right ids, ids, -log p, then samples and their losses."""

    def __init__(self, device: torch.device) -> None:
        self.sums_5 = torch.zeros(5, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, batch: Batch, answers: Answers) -> None:
        """Count a batch; padding does not count."""
        weights_B = (batch.weights_B > 0).double()
        found_B5 = torch.cat([answers.outputs.double(), torch.stack([weights_B, answers.loss_B.detach().double()], dim=1)], dim=1)
        self.sums_5 += (found_B5 * weights_B[:, None]).sum(0)

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return copies for a checkpoint, summed over all ranks."""
        return {"sums": ranks.sum(self.sums_5.clone())}

    def add_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the sums of a checkpoint."""
        self.sums_5 += tensors["sums"].to(self.sums_5)

    def record(self, ranks: Ranks) -> dict[str, float]:
        """Return loss, share of right ids, perplexity (e to the mean -log p of an id) and the number of images."""
        right, ids, nll, images, loss = self.tensors(ranks)["sums"].tolist()
        perplexity = math.exp(min(700.0, nll / max(1.0, ids)))
        return {"loss": loss / max(1.0, images), "masked_accuracy": right / max(1.0, ids), "perplexity": perplexity, "images": int(images)}


class MaskedTokenObjective(Objective):
    """Masked token modelling (SeiT++, Lee et al. 2024, section 3.1)."""

    kind = "mtm"
    training_figures: tuple[str, ...] = ("loss", "masked_accuracy", "perplexity")
    validation_figures: tuple[str, ...] = ("loss", "masked_accuracy", "perplexity", "images")
    score = "masked_accuracy"

    model: MaskedTokenModel
    kept_pool: Tensor

    @classmethod
    def build(cls, blueprint: Blueprint) -> MaskedTokenObjective:
        """Return a new objective with its augmentation."""
        spec, tables, mask = blueprint.spec, blueprint.tables, blueprint.mask or MaskConfig()
        statistics = None if blueprint.model.raw_embeddings or spec.codebook is None else blueprint.statistics
        transform = TokenTransform(spec, tables, blueprint.augment, statistics=statistics, draws=blueprint.draws, to_ids=True)
        model = build_masked_model(spec, tables, statistics, blueprint.model, mask, transform.out_grid, seed=blueprint.seed)
        frozen = TokenEmbedding(spec, tables, levels=blueprint.model.levels, standardise=statistics)
        return cls(model, transform, frozen.requires_grad_(False), mask, blueprint.label_smoothing)

    @classmethod
    def require(cls, data: TrainingData) -> None:
        """Accept all data: no label is needed."""

    def __init__(
        self, model: MaskedTokenModel, transform: TokenTransform, codes: TokenEmbedding, mask: MaskConfig, smoothing: float = 0.0
    ) -> None:
        """`codes`: the frozen code vectors that augmentations work on."""
        super().__init__()
        self.model, self.transform, self.mask, self.smoothing = model, transform, mask, smoothing
        self.codes = codes
        if mask.targets == "features":  # a squared error has no perplexity
            self.training_figures, self.validation_figures = ("loss", "masked_accuracy"), ("loss", "masked_accuracy", "images")
        self.masks = MaskDraws(mask, model.embedding.layout, model.backbone.patch_embed)
        self._paths = drop_paths_of(model)
        pool = SampleKeys(0, 0, torch.zeros(1, dtype=torch.int64)).uniform("dropout pool", POOL_VECTORS * POOL_STEP + MOST_CHANNELS)[0]
        kept = 1.0 - mask.embed_dropout
        self.register_buffer("kept_pool", (pool < kept).float() / kept, persistent=False)
        self._plan: DrawPlan | None = None
        self._planned: tuple[torch.device, bool] | None = None
        self._compiled = False

    @property
    def lookup(self) -> Lookup:
        """The code vectors in the place of a model, for the transform."""
        return Lookup(self.codes)

    def forward(self, batch: Batch) -> Answers:
        """Return the loss of each augmented sample, and its sums of `Predictions`."""
        return Answers(*self._trained(self.transform.inputs(self.lookup, batch), self._draws(batch.ids_BLQ.device)))

    def answers(self, batch: Batch) -> Answers:
        """Return loss and sums of whole samples after the centre crop, of which the share `mask.val_ratio` is hidden."""
        inputs = self.transform.inputs(self.lookup, batch, augmented=False)
        return Answers(*self._measured(inputs, self._draws(batch.ids_BLQ.device)))

    def weights_B(self, batch: Batch) -> Tensor:
        """Return the weight of each sample in the loss: 0 for padding."""
        return batch.weights_B

    def measure(self) -> MaskedTokenMeasure:
        """Return sums that begin at 0."""
        return MaskedTokenMeasure(next(self.model.parameters()).device)

    def align(self, dataset: TokenDataset, *, strict: bool = True) -> Align:
        """Return what leaves batches as they are: their labels are not read."""
        return lambda batch: batch

    def prepare(self, sample: Callable[[int], Iterator[Batch]]) -> Sequence[str]:
        """Find the centroids of patches, where these are the targets."""
        centroids = self.model.centroids
        if centroids is None:
            return ()
        ids_BLQ = torch.cat([self._cropped(batch.ids_BLQ.long()) for batch in sample(FIT_IMAGES)])
        centroids.fit(ids_BLQ, [table.detach() for table in self.codes.tables()], concat=self.codes.concat)
        return [f"centroids.{name}" for name in centroids.state_dict()]

    def compile_model(self, **options: Any) -> None:
        """Let torch compile a training step, augmentation and model as one graph, and a measurement as another one."""
        self._compiled = True
        self.transform.use_one_graph()
        self._trained = torch.compile(self._trained, fullgraph=True, dynamic=False, **options)  # type: ignore[method-assign]
        self._measured = torch.compile(self._measured, fullgraph=True, dynamic=False, **options)  # type: ignore[method-assign]

    def hidden(self, batch: Batch, ratio: float) -> tuple[Tensor, Masks, Tensor]:
        """Return the ids [B, L, Q] of whole samples after the centre crop, masks that hide a share, and the best ids of all sites."""
        inputs = self.transform.inputs(self.lookup, batch, augmented=False)
        ids_BLQ = self._cropped(inputs.ids_BLQ)
        masks = self._masks(self._draws(ids_BLQ.device)(inputs.epoch_21, inputs.positions_B), inputs, ratio)
        return ids_BLQ, masks, self.model.best_ids(self.model.embedding(ids_BLQ, shapes_BD=inputs.shapes_BD), masks)

    def _trained(self, inputs: StepInputs, plan: DrawPlan) -> tuple[Tensor, Tensor]:
        numbers = plan(inputs.epoch_21, inputs.positions_B)
        ids_BLQ = self.transform.quantised(self.lookup, inputs)
        masks = self._masks(numbers, inputs)
        x = self.model.embedding(ids_BLQ, shapes_BD=inputs.shapes_BD)
        if self.mask.embed_dropout:
            x = self._dropped_out(x, numbers)
        if self._paths:
            draw_paths(self._paths, numbers.uniform(DROP_PATH, len(self._paths)))
        found = self._predicted(x, ids_BLQ, masks, inputs, self.smoothing)
        if self._paths:
            draw_paths(self._paths, None)
        return found

    def _measured(self, inputs: StepInputs, plan: DrawPlan) -> tuple[Tensor, Tensor]:
        ids_BLQ = self._cropped(inputs.ids_BLQ)
        masks = self._masks(plan(inputs.epoch_21, inputs.positions_B), inputs, self.mask.val_ratio)
        x = self.model.embedding(ids_BLQ, shapes_BD=inputs.shapes_BD)
        return self._predicted(x, ids_BLQ, masks, inputs, 0.0)

    def _predicted(self, x: Tensor, ids_BLQ: Tensor, masks: Masks, inputs: StepInputs, smoothing: float) -> tuple[Tensor, Tensor]:
        site_mask_BL = None
        if inputs.mask is not None:
            site_mask_BL = inputs.mask.flatten(1)
            if inputs.shapes_BD is not None:
                ids_BLQ = self.model.embedding.on_canvas(ids_BLQ.transpose(1, 2), inputs.shapes_BD).transpose(1, 2)
            missing = self.model.embedding.layout.sites - site_mask_BL.shape[1]  # a batch of sequences is as long as its longest row
            if missing > 0:
                ids_BLQ = F.pad(ids_BLQ, (0, 0, 0, missing))
                site_mask_BL = F.pad(site_mask_BL, (0, missing))
        loss_B, sums_B3 = self.model(x, ids_BLQ, masks, site_mask_BL, smoothing)
        return loss_B, sums_B3

    def _masks(self, numbers: Numbers, inputs: StepInputs, ratio: float | None = None) -> Masks:
        real_BN = self.model.backbone.patch_embed.token_mask(inputs.mask)
        masks: Masks = self.masks(numbers, real_BN, ratio=ratio)
        return masks

    def _dropped_out(self, x: Tensor, numbers: Numbers) -> Tensor:
        """Return embeddings with dropout. Each site takes one vector of the pool."""
        x_BLD = x.flatten(2).transpose(1, 2) if self.model.embedding.layout.grid else x
        vectors_KD = self.kept_pool.unfold(0, x_BLD.shape[2], POOL_STEP)[:POOL_VECTORS]
        places_BL = numbers.integers(DROPOUT, POOL_VECTORS, x_BLD.shape[1])
        dropped_BLD = x_BLD * vectors_KD[places_BL]
        return dropped_BLD.transpose(1, 2).view(x.shape) if self.model.embedding.layout.grid else dropped_BLD

    def _cropped(self, ids_BLQ: Tensor) -> Tensor:
        """Return the ids of the centre crop that the transform's grid is."""
        grid, whole = self.transform.out_grid, self.transform.layout.grid
        if grid is None or grid == whole:
            return ids_BLQ
        plane = ids_BLQ.transpose(1, 2).reshape(len(ids_BLQ), -1, *whole)
        return centre_crop(plane, (grid[-2], grid[-1])).flatten(2).transpose(1, 2)

    def _draws(self, device: torch.device) -> DrawPlan:
        """Return the plan of the numbers that masks, dropout and drop path take, on a device."""
        wanted = device, self._compiled
        if self._plan is None or self._planned != wanted:
            draws = [*self.masks.draws()]
            if self.mask.embed_dropout:
                draws.append(Draw(DROPOUT, "integers", self.model.embedding.layout.sites))
            if self._paths:
                draws.append(Draw(DROP_PATH, count=len(self._paths)))
            self._plan, self._planned = DrawPlan(draws, few=few_on(device, compiled=self._compiled)).to(device), wanted
        return self._plan
