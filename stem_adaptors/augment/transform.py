"""The transform of a training: a declared list of operations, first on ids, then, after the codebook lookup, on embeddings.

Everything that changes between steps enters as a tensor, so that torch.compile makes one graph. On a GPU nothing waits for a value.

Shapes: B samples, G mix groups, L sites, Q ids per site, D channels, H x W grid, C classes, P places of a model that draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.codebook import Tables
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.augment import crops, index_ops, label_maps
from tokenshards.stem_adaptors.augment.declared import operations_of
from tokenshards.stem_adaptors.augment.keys import all_rows, digest_halves
from tokenshards.stem_adaptors.augment.language import text_of
from tokenshards.stem_adaptors.augment.mixing import CutMix
from tokenshards.stem_adaptors.augment.numbers import Draw, DrawnNumbers, DrawPlan, few_on
from tokenshards.stem_adaptors.augment.on_embeddings import CentreCrop, RandomCrop, RandomResizedCrop
from tokenshards.stem_adaptors.augment.on_ids import CropIds
from tokenshards.stem_adaptors.augment.operation import Data, Operation
from tokenshards.stem_adaptors.augment.quantise import Quantise
from tokenshards.stem_adaptors.augment.state import StepInputs, TokenState, Transformed
from tokenshards.stem_adaptors.augment.targets import soft_cross_entropy, soft_targets
from tokenshards.stem_adaptors.augment.token_model import DROP_PATH, TokenModel
from tokenshards.stem_adaptors.config import DRAWS, AugmentConfig
from tokenshards.stem_adaptors.data.batch import Batch, require_batch
from tokenshards.stem_adaptors.precision import in_float32

__all__ = ["StepInputs", "TokenTransform", "Transformed"]


class TokenTransform(nn.Module):
    """What training does to token batches: `x, targets_BC, mask = transform(model, batch)`, or `transform.loss(model, batch)`.

    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> model, transform = tokenshards.build("vit_nano", dataset, augment="seit")
    >>> batch = next(iter(tokenshards.TokenLoader(dataset, batch_size=24)))
    >>> x, targets_BC, mask = transform(model, batch)
    >>> x.shape, targets_BC.shape, mask  # 16 x 16 sites, cropped to 14 x 14
    (torch.Size([24, 48, 14, 14]), torch.Size([24, 3]), None)
    >>> loss = transform.loss(model, batch)  # another batch, or the next epoch, draws other numbers

    `config`: the operations. `classes` and `smoothing`: those of the targets. `statistics`: mean and standard deviation by which the
    model standardises embeddings. `draws`: version of the random draws, see `config.DRAWS`. `to_ids`: end with ids, for `quantised`.
    Raises ConfigError for an operation that has no meaning in the layout, or that needs a codebook where there is none.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        tables: Tables,
        config: AugmentConfig,
        classes: int = 0,
        smoothing: float = 0.0,
        *,
        statistics: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
        draws: int = DRAWS,
        to_ids: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.layout = config, spec.layout
        self.classes, self.smoothing = classes, smoothing
        self._version = draws
        self._id_dtype = index_ops.id_dtype(spec)
        operations = operations_of(spec, config, draws=draws)
        if to_ids:
            operations = _ending_with_ids(operations)
        self.operations = nn.ModuleList(operations)
        self._grids = [spec.layout.grid or (spec.layout.sites,)]
        for operation in self._list:
            for member in operation.members():
                member.version, member.statistics = draws, statistics
            operation.prepare(spec, tables, self._grids[-1])
            self._grids.append(operation.out_grid(self._grids[-1]))
        self._suffixes = [""] * len(self.operations)
        self._compiled = self._loaded = False
        self._planned: tuple[int, int, int | None] | None = None
        self.plan = DrawPlan([])

    def __repr__(self) -> str:
        """Return the operations as `augment.ops` writes them; torch's own form has a line for each part of each operation."""
        return f"TokenTransform({text_of(self._list)}; {self.classes} classes, grid {self.out_grid})"

    @property
    def _list(self) -> list[Operation]:
        return [operation for operation in self.operations if isinstance(operation, Operation)]

    def members(self) -> list[Operation]:
        """Return all operations, with those that others hold."""
        return [member for operation in self._list for member in operation.members()]

    @property
    def needs_label_shares(self) -> bool:
        """Whether labels are mixed by the model's attention (`TokenModel.classify_with_shares`)."""
        return any(isinstance(member, CutMix) and member.follows_attention for member in self.members())

    @property
    def out_grid(self) -> tuple[int, ...] | None:
        """(H', W') or (T, H', W') of transformed embeddings. None for a layout without a common grid, which is never cropped."""
        return self._grids[-1] if index_ops.has_plane(self.layout) else None

    def evaluation(self, x: Tensor) -> Tensor:
        """Return the centre crop to `out_grid`, a view of x. Layouts without a common grid stay whole."""
        grid = self.out_grid
        return x if grid is None else crops.centre_crop(x, (grid[-2], grid[-1]))

    def evaluation_maps(self, maps_BHW: Tensor) -> Tensor:
        """Return the part of label maps that `evaluation` leaves of embeddings."""
        grid, whole = self.out_grid, self._grids[0]
        return maps_BHW if grid is None else label_maps.centre_cropped(maps_BHW, (whole[-2], whole[-1]), (grid[-2], grid[-1]))

    def require_maps_fit(self) -> None:
        """Raise ConfigError for an operation that cannot be used where the class of each pixel is learned."""
        for operation in self._list:
            if (reason := operation.map_refusal()) is not None:
                raise ConfigError(f"augment: {reason}")

    def forward(self, model: TokenModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return embeddings, soft targets [B, C] and the mask of sites (None where all exist) of an augmented batch.

        Raises ConfigError for CutMix with labels by attention: targets are then known behind the model only, in `loss` and `answers`.
        """
        found = self.transformed(model, self.inputs(model, batch))
        if found.cut is not None:
            raise ConfigError(
                "CutMix has labels='attention', so that the targets depend on what the model computes; expected a call of "
                "transform.loss(model, batch), or labels='area' (augment.cutmix_labels=area)"
            )
        return found.x, found.targets_BC, found.mask

    def loss(self, model: TokenModel, batch: Batch) -> Tensor:
        """Return the cross-entropy with soft targets, the mean over the labelled samples of the batch."""
        loss_B, _ = self.answers(model, self.inputs(model, batch))
        weights_B = batch.weights_B * (batch.labels_B >= 0)
        return (loss_B * weights_B).sum() / weights_B.sum().clamp_min(1.0)

    def load(self) -> None:
        """Read the files that operations need, once. `inputs` does so before the first batch; a run that is only measured needs none."""
        if not self._loaded:
            for operation in self._list:
                for member in operation.members():
                    member.load()
        self._loaded = True

    def compile(self, *, fullgraph: bool = True, **options: Any) -> None:
        """Let torch compile operations and model as one graph in `loss` and `answers`, and the operations in `forward`.

        The options are those of torch.compile. Another size of batch makes another graph; another step or epoch does not.
        """
        self.use_one_graph()
        self.transformed = torch.compile(self.transformed, fullgraph=fullgraph, dynamic=False, **options)  # type: ignore[method-assign]
        self.answers = torch.compile(self.answers, fullgraph=fullgraph, dynamic=False, **options)  # type: ignore[method-assign]

    def use_one_graph(self) -> None:
        """Prepare batches for a graph that torch compiles: ids are checked and all random numbers are drawn outside of the operations."""
        self._compiled = True

    def inputs(self, model: TokenModel, batch: Batch, *, augmented: bool = True) -> StepInputs:
        """Return the tensors of a batch. Buffers of the transform move to the batch's device, where they are not there yet.

        `augmented`: whether operations will work on them, which may need files (`load`).

        Raises ConfigError for ids outside of the vocabulary, as `TokenEmbedding.check` does, and for anything but a batch of tensors.
        """
        require_batch(batch)
        if augmented:
            self.load()
        device = batch.ids_BLQ.device
        few = few_on(device, compiled=self._compiled)
        wanted = model.embedding.channels, self._paths(model), few
        if self._planned != wanted:
            self.plan, self._planned = self._made_plan(*wanted), wanted
        if self.plan.counters_N.device != device:
            self.to(device)
        ids_BLQ = batch.ids_BLQ.to(self._id_dtype)
        mask = model.embedding.site_mask(batch.mask_BL, batch.shapes_BD)
        if self.layout.variable and mask is None:
            raise ConfigError("a batch of a layout of varying size has neither lengths_B nor shapes_BD; take batches from a TokenLoader")
        if self._compiled:
            model.embedding.check(ids_BLQ)
        epoch_21 = digest_halves(f"{batch.seed} {batch.epoch}", device)
        return StepInputs(ids_BLQ, batch.labels_B, batch.positions_B, epoch_21, mask, batch.shapes_BD, batch.maps_BHW)

    def answers(self, model: TokenModel, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample and its logits [B, C]. This is what torch.compile may compile as one graph."""
        found = self.transformed(model, inputs)
        if found.cut is None:
            logits_BC = model.classify(found.x, found.mask, found.draws_BP)
            return soft_cross_entropy(logits_BC.float(), found.targets_BC), logits_BC
        logits_BC, shares_B = model.classify_with_shares(found.x, found.cut.replaced, found.draws_BP)
        targets_BC = torch.lerp(found.targets_BC, found.cut.targets_BC, shares_B[:, None])
        return soft_cross_entropy(logits_BC.float(), targets_BC), logits_BC

    def transformed(self, model: TokenModel, inputs: StepInputs) -> Transformed:
        """Return the augmented batch, in float32 also under autocast."""
        with in_float32(inputs.ids_BLQ.device):
            numbers = self.plan(inputs.epoch_21, inputs.positions_B)
            state = self._augmented(model, inputs, numbers)
            x = state.embeddings if self.layout.grid else state.embeddings.transpose(1, 2)
            draws_BP = numbers.uniform(DROP_PATH, model.drop_path_draws) if self._paths(model) else None
        return Transformed(x, state.targets_BC, inputs.mask, draws_BP, state.cut, state.maps_BHW)

    def quantised(self, model: TokenModel, inputs: StepInputs) -> Tensor:
        """Return the ids [B, L, Q] of an augmented batch, of a transform that was made with `to_ids`."""
        with in_float32(inputs.ids_BLQ.device):
            return self._operated(model, inputs, self.plan(inputs.epoch_21, inputs.positions_B)).ids_BLQ

    def state(self, model: TokenModel, batch: Batch) -> TokenState:
        """Return ids and embeddings [B, D, *sites] of an augmented batch, to look at."""
        inputs = self.inputs(model, batch)
        return self._augmented(model, inputs, self.plan(inputs.epoch_21, inputs.positions_B))

    def _augmented(self, model: TokenModel, inputs: StepInputs, numbers: DrawnNumbers) -> TokenState:
        state = self._operated(model, inputs, numbers)
        return state if state.x is not None else self._embedded(model, inputs, state)

    def _operated(self, model: TokenModel, inputs: StepInputs, numbers: DrawnNumbers) -> TokenState:
        targets_BC = soft_targets(inputs.labels_B, self.classes, self.smoothing)
        vectors = getattr(model.embedding, "vectors", None)
        groups = self._groups(len(inputs.ids_BLQ))
        state = TokenState(inputs.ids_BLQ, targets_BC, groups, vectors=vectors, maps_BHW=inputs.maps_BHW)
        for operation, suffix in zip(self._list, self._suffixes, strict=True):
            own = numbers.scoped(suffix)
            if operation.stage == "embeddings" and state.x is None:
                if isinstance(operation, RandomResizedCrop) and _looks_up_rows(model, inputs.ids_BLQ.device):
                    state = self._cropped(model, inputs, operation, state, own)
                    continue
                state = self._embedded(model, inputs, state)
            state = operation(state, own)
        return state

    def _embedded(self, model: TokenModel, inputs: StepInputs, state: TokenState) -> TokenState:
        x = model.embed(state.ids_BLQ, shapes_BD=inputs.shapes_BD)
        return state._replace(x=x if self.layout.grid else x.transpose(1, 2), mask=inputs.mask)

    def _cropped(
        self, model: TokenModel, inputs: StepInputs, crop: RandomResizedCrop, state: TokenState, numbers: DrawnNumbers
    ) -> TokenState:
        """Look up and crop piece by piece. The result is that of a lookup and a crop, to the bit, without the memory between them."""
        shape = torch.Size([len(state.ids_BLQ), model.embedding.channels, *self._grids[0]])
        return crop.looked_up(lambda rows: model.embed(state.ids_BLQ[rows]), shape, state._replace(mask=inputs.mask), numbers)

    def _groups(self, count: int) -> int:
        """Return the number of mix groups among `count` samples; 1 where the samples do not fill groups of the configured size."""
        size = self.config.mix_group or count
        return count // size if count and count % size == 0 else 1

    def _paths(self, model: TokenModel) -> int:
        """Return how many numbers the model takes; runs of the first version draw them from torch's generator."""
        return model.drop_path_draws if self._version > 1 else 0

    def _made_plan(self, channels: int, paths: int, few: int | None) -> DrawPlan:
        """Return the plan of all random numbers, for embeddings as wide as the model's."""
        found: dict[str, Draw] = {DROP_PATH: Draw(DROP_PATH, count=paths)} if paths else {}
        for index, (operation, grid) in enumerate(zip(self._list, self._grids, strict=False)):
            own = operation.draws(Data(self.layout, grid, channels))
            suffix = _free_suffix(own, found)
            self._suffixes[index] = suffix
            for draw in own:
                name = draw.name + suffix
                count = max(draw.count, found[name].count if name in found else 0)
                found[name] = Draw(name, draw.kind, count)
        return DrawPlan(list(found.values()), few=few)


def _ending_with_ids(operations: Sequence[Operation]) -> list[Operation]:
    """Return operations that do the same and leave ids: crops that resample nothing crop the ids, unless embeddings change too."""
    moving = [part for part in operations if part.stage == "embeddings"]
    if len(moving) == 1 and isinstance(moving[0], CentreCrop | RandomCrop):
        return [CropIds(part) if isinstance(part, CentreCrop | RandomCrop) else part for part in operations]
    return [*operations, Quantise()] if moving and not moving[-1].gives_ids else [*operations]


def _looks_up_rows(model: TokenModel, device: torch.device) -> bool:
    """Return whether embeddings may be looked up piece by piece: on a CPU, where no gradient comes back to the tables."""
    return not all_rows(device) and not getattr(model.embedding, "learned", True)


def _free_suffix(draws: Sequence[Draw], taken: dict[str, Draw]) -> str:
    """Return what to append to names of streams, so that an operation that stands in the list again draws numbers of its own."""
    suffix, number = "", 1
    while any(draw.name + suffix in taken for draw in draws):
        number += 1
        suffix = f"#{number}"
    return suffix
