"""timm: our classifiers as models of `timm.create_model`, and the loader of (input, target) pairs that its training loop reads.

Shapes: B samples, L sites, Q ids per site, D channels, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tokenshards.pipeline.errors import ConfigError, shorten
from tokenshards.pipeline.optional_packages import optional_import
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.stem_adaptors.augment import TokenTransform
from tokenshards.stem_adaptors.config import AugmentConfig, LoaderConfig, ModelConfig
from tokenshards.stem_adaptors.data.class_names import class_map, relabelled
from tokenshards.stem_adaptors.data.given import loader_config, require_data
from tokenshards.stem_adaptors.data.loader import TokenLoader
from tokenshards.stem_adaptors.data.same_tokenizer import require_same_tokenizer
from tokenshards.stem_adaptors.data.selection import Selection
from tokenshards.stem_adaptors.models.classifier import SIZES, TokenClassifier
from tokenshards.stem_adaptors.training.build import build

__all__ = ["TimmClassifier", "TimmLoader", "register_timm_models"]

PREFIX = "tokenshards_"


def register_timm_models() -> tuple[str, ...]:
    """Let `timm.create_model` know `tokenshards_vit_nano` to `tokenshards_vit_base`; return these names.

    >>> import timm
    >>> names = tokenshards.register_timm_models()
    >>> model = timm.create_model("tokenshards_vit_nano", data="photos.tokens", augment="mild")
    >>> type(model).__name__, model.num_classes
    ('TimmClassifier', 3)

    Such a model takes `data`, a dataset or its URL, which says what the ids mean, and `augment`, `seed` and `label_smoothing` as `build`
    does; of timm's own options `drop_path_rate`. Raises ConfigError where timm is missing, and from `create_model` for options that do not
    fit.
    """
    with optional_import("register_timm_models needs timm", extra="timm"):
        from timm.models import is_model, register_model
    names = tuple(PREFIX + size for size in SIZES)
    for name in names:
        if not is_model(name):
            register_model(_entry_point(name))
    return names


def _entry_point(name: str) -> Callable[..., TimmClassifier]:
    def create(
        pretrained: bool = False,
        data: str | TokenDataset | Selection | None = None,
        augment: str | AugmentConfig | None = None,
        num_classes: int | None = None,
        drop_path_rate: float = 0.0,
        label_smoothing: float = 0.1,
        seed: int = 0,
        **options: Any,
    ) -> TimmClassifier:
        what = f"timm.create_model({name!r})"
        # timm's own training script gives these to every model.
        free = {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
        unknown = sorted(option for option, value in options.items() if value and option not in free)
        if pretrained or unknown:
            raise ConfigError(f"{what}: {'pretrained=True' if pretrained else f'no option {unknown[0]}'}; there is no such thing for it")
        if data is None:
            raise ConfigError(f"{what}: data is missing; expected a dataset or its URL, which says what the ids mean")
        dataset = open_dataset(data) if isinstance(data, str) else data
        if num_classes not in (None, len(dataset.classes)):
            raise ConfigError(f"{what}: num_classes is {num_classes}; the dataset has {len(dataset.classes)} classes. Leave it out")
        config = ModelConfig(name=name.removeprefix(PREFIX), drop_path=drop_path_rate)
        model, transform = build(config, dataset, augment=augment, label_smoothing=label_smoothing, seed=seed)
        return TimmClassifier(model, transform, dataset, name)

    create.__name__ = create.__qualname__ = name
    # timm lists what it registers in the module's __all__, so it must be found there.
    globals()[name] = create
    return create


class TimmClassifier(TokenClassifier):
    """A TokenClassifier that also takes augmented embeddings, with what timm's loop asks of a model."""

    def __init__(self, model: TokenClassifier, transform: TokenTransform, data: TokenDataset | Selection, name: str) -> None:
        super().__init__(model.embedding, model.backbone, model.out_grid)
        self._transform = [transform]  # in a list, so that a state dict holds the weights of the classifier alone
        self.spec = data.spec
        """What the ids mean."""
        self.classes, self.num_classes = data.classes, len(data.classes)
        self.pretrained_cfg = self.default_cfg = {
            "architecture": name,
            "num_classes": self.num_classes,
            "input_size": (self.embedding.channels, *self.out_grid),
            "classifier": "backbone.head",
        }

    @property
    def transform(self) -> TokenTransform:
        """The transform of training, which TimmLoader applies."""
        return self._transform[0]

    def forward(self, ids_BLQ: Tensor, *, mask_BL: Tensor | None = None, shapes_BD: Tensor | None = None) -> Tensor:
        """Return logits [B, C] of ids, as TokenClassifier does, or of the transform's embeddings [B, D, *sites]."""
        if isinstance(ids_BLQ, Tensor) and ids_BLQ.is_floating_point():
            grid = bool(self.embedding.layout.grid)
            channels = ids_BLQ.shape[1 if grid else -1]
            if ids_BLQ.ndim != (2 + len(self.embedding.grid) if grid else 3) or channels != self.embedding.channels:
                raise ConfigError(
                    f"the input is {ids_BLQ.dtype} {list(ids_BLQ.shape)}; expected ids as integers, or the transform's embeddings of "
                    f"{self.embedding.channels} channels, which TimmLoader(..., training=True) gives"
                )
            return self.classify(ids_BLQ)
        return super().forward(ids_BLQ, mask_BL=mask_BL, shapes_BD=shapes_BD)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that `train` does not decay, beside biases and norms, which timm knows."""
        names = [name for name, _ in self.named_parameters()]
        return {name for name in names if name.endswith(("_embed", "_token")) or name.startswith("embedding.")}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of layers, for its decay of the rate by layer."""
        return {
            "stem": r"^embedding|^backbone\.(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^backbone\.blocks\.(\d+)", None), (r"^backbone\.fc_norm", (99999,))],
        }


class TimmLoader:
    """Pairs (input, target) of a dataset for a TimmClassifier, one epoch per iteration, on the model's device.

    >>> import timm
    >>> from timm.loss import SoftTargetCrossEntropy
    >>> dataset = tokenshards.open_dataset("photos.tokens")
    >>> name = tokenshards.register_timm_models()[0]
    >>> model = timm.create_model(name, data=dataset, augment="mild")
    >>> input, target = next(iter(tokenshards.TimmLoader(dataset, model, training=True, batch_size=24)))
    >>> loss = SoftTargetCrossEntropy()(model(input), target)
    >>> input, target = next(iter(tokenshards.TimmLoader(dataset, model, training=False, batch_size=24)))
    >>> input.dtype, tuple(input.shape), target.dtype
    (torch.int64, (24, 256, 2), torch.int64)

    In training, inputs are augmented embeddings and targets are soft, [B, C]: the loss is timm's SoftTargetCrossEntropy, without timm's
    Mixup and label smoothing. Otherwise inputs are ids [B, L, Q] and targets the model's class indices, each labelled image once.
    """

    mixup_enabled = False
    """timm turns its own Mixup off here."""

    def __init__(
        self, data: TokenDataset | Selection, model: TimmClassifier, *, training: bool, config: LoaderConfig | None = None, **settings: Any
    ) -> None:
        """`config` and `settings` are those of TokenLoader; `batch_size` is that of all ranks together.

        Raises what TokenLoader raises, and OtherTokenizerError for ids of another tokenizer than the model's. Raises ConfigError for
        classes that the model lacks, and for training of a learned codebook.
        """
        require_data(data)
        require_same_tokenizer(data, model.spec, "the model's training set")
        self._model, self._training = model, training
        kinds = {} if training else {"order": "sequential", "end": "pad"}
        self.loader = TokenLoader(data, loader_config(config, {**settings, **kinds}))
        self._classes = class_map(data.classes, model.classes, shorten(data), missing_is_error=True)
        if training and any(parameter.requires_grad for parameter in model.embedding.parameters()):
            raise ConfigError("the model learns its codebook; TimmLoader looks codes up before the model, which would get no gradient")

    def __repr__(self) -> str:
        return f"TimmLoader({self.loader!r}, training={self._training})"

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self._model.parameters()).device
        for batch in iter(self.loader) if self._training else self.loader.epoch(0):
            batch = relabelled(self._classes, batch).to(device, non_blocking=True)
            if self._training:
                with torch.no_grad():
                    x, targets_BC, _ = self._model.transform(self._model, batch)
                yield x, targets_BC
            else:
                real_B = (batch.weights_B > 0) & (batch.labels_B >= 0)
                if real_B.any():
                    yield batch.ids_BLQ.to(torch.int64)[real_B], batch.labels_B[real_B]
