"""Published networks around one table of codes: an id names the row that is nearest to the encoder's vector of a site.

Shapes: B images, L sites, K codes, D values of a code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.tokenizers.base import CodebookInfo, Preprocess, Tables, TokenizerSpec
from tokenshards.pipeline.tokenizers.config import ImportConfig
from tokenshards.pipeline.tokenizers.nearest_code import Metric, NearestCode
from tokenshards.pipeline.tokenizers.networks.network_tokenizer import NetworkTokenizer
from tokenshards.pipeline.tokenizers.networks.weights import as_tensors, tensor_of

__all__ = ["CodebookTokenizer"]

Floats = npt.NDArray[np.float32]

TABLE = "level_0"
KEPT = "kept_codes"
UNIT_TOLERANCE = 1e-3


class CodebookTokenizer(NetworkTokenizer):
    """A tokenizer whose ids are the nearest rows of `codes_KD`, the raw table of a checkpoint.

    `kept` names the rows of the published table that `codes_KD` holds, where it holds only some of them.
    """

    metric: Metric = "l2"
    TABLE_KEY: ClassVar[str] = "quantize.embedding.weight"

    def __init__(
        self,
        state: Mapping[str, Tensor],
        codes_KD: Floats,
        *,
        preprocess: Preprocess,
        config: Mapping[str, Any],
        kept: Sequence[int] | None = None,
        dtype: str = "float32",
        where: str = "",
    ) -> None:
        self._kept = None if kept is None else list(kept)
        super().__init__(state, [codes_KD], preprocess=preprocess, config=config, dtype=dtype, where=where)

    @classmethod
    @abstractmethod
    def preprocess(cls, state: Mapping[str, Tensor], config: ImportConfig, decoder: str, where: str) -> Preprocess:
        """Return the preprocessing for this checkpoint; `decoder` names the library that decodes images."""

    @classmethod
    def prepared(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> Mapping[str, Tensor]:
        """Return the tensors to use: a family may choose, for example, moving averages in place of parameters."""
        return checkpoint

    @classmethod
    def settings(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, where: str) -> dict[str, Any]:
        """Return the facts of the import that the spec keeps besides preprocessing and dtype, in plain JSON types."""
        return {}

    @classmethod
    def from_checkpoint(cls, checkpoint: Mapping[str, Tensor], config: ImportConfig, *, decoder: str, where: str) -> Self:
        """Build the tokenizer that a published checkpoint holds.

        Raises TokenizerError that names a key which is missing, has another shape, or belongs to no part of this network.
        """
        doubts = cls.doubts(checkpoint, config, where)
        checkpoint = cls.prepared(checkpoint, config, where)
        table = tensor_of(checkpoint, cls.TABLE_KEY, 2, where, cls.family)
        state = cls.networks_of(checkpoint, config, cls.TABLE_KEY, where)
        built = cls(
            state,
            table.float().numpy(),
            preprocess=cls.preprocess(state, config, decoder, where),
            config=cls.settings(checkpoint, config, where),
            dtype=config.dtype,
            where=where,
        )
        built.check_networks()
        built._notes += doubts
        return built

    @classmethod
    def from_saved(cls, spec: TokenizerSpec, tables: Tables) -> Self:
        """Build the tokenizer back from its spec, table and weights."""
        if TABLE not in tables:
            raise TokenizerError(f"{cls.family}: {TABLE} is missing among {sorted(tables)[:4]}; copy the whole tokenizer folder")
        config = dict(spec.config)
        return cls(
            as_tensors({name: value for name, value in tables.items() if name != TABLE}, ""),
            np.asarray(tables[TABLE]),
            kept=config.pop(KEPT, None),
            preprocess=spec.preprocess,
            config=config,
            dtype=spec.dtype,
        )

    def saved_config(self) -> dict[str, Any]:
        """Return the settings and the kept codes."""
        return {**self._config, **({} if self._kept is None else {KEPT: self._kept})}

    def codebook_info(self, sha256: str, dims: tuple[int, ...]) -> CodebookInfo:
        """Return the metric, and whether the raw rows have length 1."""
        norms_K = np.linalg.norm(self._tables[0].astype(np.float64), axis=1)
        unit = bool((np.abs(norms_K - 1) < UNIT_TOLERANCE).all())
        return CodebookInfo(sha256=sha256, dims=dims, metric=self.metric, rows_normalised=unit)

    def keep(self, codes: Sequence[int]) -> Self:
        """Return this tokenizer with these codes alone, renumbered from 0 in this order. Vectors of other codes go to the nearest code
        left."""
        before = self._kept
        return type(self)(
            self._state,
            self._tables[0][np.asarray(codes)],
            preprocess=self._spec.preprocess,
            config=self._config,
            kept=[int(code) if before is None else before[code] for code in codes],
            dtype=self._spec.dtype,
            where=self._where,
        )

    def quantise(self, vectors_BLD: Tensor) -> Tensor:
        """Return the nearest rows [B, L, 1]."""
        return self._nearest(vectors_BLD.flatten(0, 1)).reshape(*vectors_BLD.shape[:2], 1)

    def dequantise(self, ids_BLQ: Tensor) -> Tensor:
        """Return the rows [B, L, D], scaled to length 1 where the search compares them so."""
        return self._nearest.rows(ids_BLQ[:, :, 0])

    @cached_property
    def _nearest(self) -> NearestCode:
        return NearestCode(self._tables[0], self.metric)
