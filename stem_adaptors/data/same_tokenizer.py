"""A check that two datasets, or a dataset and a model, have ids of one tokenizer."""

from __future__ import annotations

from tokenshards.pipeline.errors import OtherTokenizerError
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.stem_adaptors.data.batch_reader import TrainingData, parts_of
from tokenshards.stem_adaptors.data.selection import Selection

__all__ = ["require_same_tokenizer"]

BOTH_SETS = "Tokenize both sets with one tokenizer: tokenshards tokenize SRC OUT --tokenizer TRAINING_SET"


def require_same_tokenizer(data: TrainingData, spec: TokenizerSpec, owner: str, advice: str = BOTH_SETS) -> None:
    """Raise OtherTokenizerError unless the tokenizer of `spec` made the data.

    `owner` names what has the spec, such as `the model`; `advice` is what to do.
    """
    if data.spec.fingerprint == spec.fingerprint:
        return
    first = parts_of(data)[0]
    place = (first.dataset if isinstance(first, Selection) else first).store.url
    raise OtherTokenizerError(
        f"{place} was made by the tokenizer {data.spec.fingerprint[:12]}…; {owner} by {spec.fingerprint[:12]}…, so its ids mean something "
        f"else. {advice}"
    )
