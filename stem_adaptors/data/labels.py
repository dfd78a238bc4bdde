"""Whether data have any label. Class tables do not tell: a dataset keeps that of its tokenizer's dataset, whatever its own images are."""

from __future__ import annotations

from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.stem_adaptors.data.mixing import Mix
from tokenshards.stem_adaptors.data.selection import Selection, labels_of, sample_count

__all__ = ["has_labels", "require_labels"]


def has_labels(data: TokenDataset | Selection | Mix) -> bool:
    """Whether one image at least has a label. The counts of the manifest tell, save for a selection of a dataset with unlabelled images."""
    if isinstance(data, Mix):
        return any(map(has_labels, data.parts))
    dataset = data.dataset if isinstance(data, Selection) else data
    labelled = sum(dataset.manifest.class_counts)
    if not labelled or not isinstance(data, Selection):
        return labelled > 0
    if len(data) > (len(dataset) - labelled) // dataset.views:
        return True
    return bool((labels_of(dataset)[data.rows_n] >= 0).any())


def require_labels(data: TokenDataset | Selection | Mix, otherwise: str) -> None:
    """Raise ConfigError where no image has a label. `otherwise`: what else the user may do, as a sentence without its full stop."""
    if has_labels(data):
        return
    dataset = data.dataset if isinstance(data, Selection | Mix) else data
    masks = "" if dataset.mask is None else ". The images have masks, which `train --objective segment` learns"
    raise ConfigError(
        f"{dataset.store.url}: none of the {sample_count(data):,} images has a label; expected labels. Tokenize the images with their "
        f"labels (a folder for each class, or --label-from). {otherwise}{masks}"
    )
