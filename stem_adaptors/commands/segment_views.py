"""What a segmenter sees in some images: the tokens, the masks, and the class that the model gives each pixel.

Shapes: B samples, H x W pixels of a label map.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tokenshards.pipeline.commands.options import parse_options
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.job.context import TOKENIZER_FOLDER
from tokenshards.pipeline.records import concatenate_tokens
from tokenshards.pipeline.reports.drawings import image_table
from tokenshards.pipeline.reports.mask_drawings import mask_colours, no_mask, with_legend
from tokenshards.pipeline.reports.previews import spread_samples
from tokenshards.pipeline.shards.dataset import TokenDataset, open_dataset
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.stem_adaptors.commands.run_drawings import keep_drawing
from tokenshards.stem_adaptors.commands.train_options import TrainOptions
from tokenshards.stem_adaptors.data.batch import Batch
from tokenshards.stem_adaptors.data.label_maps import map_format
from tokenshards.stem_adaptors.objectives.segment import SegmentObjective
from tokenshards.stem_adaptors.reporting.progress import TrainingReporter
from tokenshards.stem_adaptors.training.run_directory import open_objective

__all__ = ["SEGMENTS", "draw_segments", "segments_drawing"]

SEGMENTS = "segments.png"
SHOWN = 8


def draw_segments(options: TrainOptions, reporter: TrainingReporter) -> None:
    """Draw images of the validation set (else of the training set), their masks and what the model finds, into the run directory.

    Where the tokenizer cannot draw images, say so.
    """
    stores = parse_options(options.storage_option)
    out = Store(options.out, storage_options=stores)

    def draw() -> Any:
        return segments_drawing(out, open_dataset(options.val or options.data, storage_options=stores))

    keep_drawing(out, SEGMENTS, draw, "what the model finds", reporter)


def segments_drawing(run: Store, dataset: TokenDataset) -> Any:
    """Return an image with a row for each of some samples. Raises ConfigError for a run of something else, and what decoding raises."""
    objective, found = open_objective(run)
    if not isinstance(objective, SegmentObjective):
        raise ConfigError(f"{run.url}: the run learned {found.objective!r}; expected one of `train --objective segment`")
    samples, maps, own = spread_samples(dataset, SHOWN), objective.maps, map_format(dataset)  # a mask of 16 bits ignores another value
    tokens = concatenate_tokens([sample.tokens for sample in samples])
    pixels_BHWC = load_tokenizer(dataset.store, TOKENIZER_FOLDER).decode(tokens)
    predicted_BHW = _predicted(objective, tokens.ids_BLQ.astype(np.int64))
    rows, classes = [], {int(value) for value in np.unique(predicted_BHW)} - {maps.ignore}
    for sample, pixels_HWC, predicted_HW in zip(samples, pixels_BHWC, predicted_BHW, strict=True):
        mask_HW = sample.mask_HW
        drawn = no_mask(own.height, own.width) if mask_HW is None else mask_colours(mask_HW, own.ignore)
        rows.append([pixels_HWC, drawn, mask_colours(predicted_HW, maps.ignore)])
        if mask_HW is not None:
            classes |= {int(value) for value in np.unique(mask_HW)} - {own.ignore}
    return with_legend(image_table(rows, ["tokens", "mask", "found by\nthe model"], [sample.sample_id for sample in samples]), classes)


def _predicted(objective: SegmentObjective, ids_BLQ: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the best class of each pixel, [B, H, W]; `ignore` around the centre crop that the model sees."""
    maps, places_B = objective.maps, torch.arange(len(ids_BLQ))
    inside = torch.zeros(len(ids_BLQ), maps.height, maps.width, dtype=torch.uint8)
    batch = Batch(torch.from_numpy(ids_BLQ), places_B, torch.ones(len(ids_BLQ)), places_B, places_B, epoch=0, seed=0, maps_BHW=inside)
    with torch.inference_mode():
        best_Bhw = objective.logits(batch).argmax(1).numpy()
    found_BHW = np.full((len(best_Bhw), maps.height, maps.width), maps.ignore, maps.dtype)
    top, left = (maps.height - best_Bhw.shape[1]) // 2, (maps.width - best_Bhw.shape[2]) // 2
    found_BHW[:, top : top + best_Bhw.shape[1], left : left + best_Bhw.shape[2]] = best_Bhw
    return found_BHW
