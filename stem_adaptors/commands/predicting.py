"""`tokenshards.predict`: the classes of images by a trained run. The command `predict` calls the same code.

Shapes: B images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenshards.pipeline.commands.options import parse_options
from tokenshards.pipeline.commands.python_calls import as_function
from tokenshards.pipeline.conversion.encode_files import tokenize_images
from tokenshards.pipeline.devices import choose_device
from tokenshards.pipeline.errors import ConfigError
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer
from tokenshards.pipeline.words import short_repr
from tokenshards.stem_adaptors.commands.predict_options import PredictOptions
from tokenshards.stem_adaptors.precision import recorded_precision
from tokenshards.stem_adaptors.training import evaluate
from tokenshards.stem_adaptors.training.run_directory import open_classifier

__all__ = ["Prediction", "predict", "predictions"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable classes of one image, or why it has none.

    >>> prediction = tokenshards.Prediction("cat.jpg", (("cat", 0.75), ("dog", 0.25)))
    >>> prediction.label, prediction.to_json()["classes"][1]
    ('cat', {'class': 'dog', 'probability': 0.25})
    """

    image: str
    """Its path or URL."""
    classes: tuple[tuple[int | str, float], ...] = ()
    """(class, probability) pairs, the best first; empty where the image cannot be read."""
    error: str | None = None
    """Why the image cannot be read."""

    def __repr__(self) -> str:
        return short_repr(self, image=self.image, classes=self.classes or None, error=self.error)

    @property
    def label(self) -> int | str | None:
        """The most probable class; None where the image cannot be read."""
        return self.classes[0][0] if self.classes else None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of `predict --json`, a line for each image."""
        return {"image": self.image, "classes": [{"class": label, "probability": share} for label, share in self.classes]}


@as_function(PredictOptions)
def predict(options: PredictOptions) -> list[Prediction]:
    """Return the classes of images by a run, as the command `predict` does: a Prediction for each image.

    >>> trained = tokenshards.train("photos.tokens", "predicting", epochs=1, set={"model.depth": 1})
    >>> found = tokenshards.predict("predicting", "more_photos", top=2)
    >>> len(found), len(found[0].classes), found[0].label in ("class_0", "class_1", "class_2")
    (12, 2, True)

    An image that cannot be read has an `error`, and does not stop the others. Raises the errors of `tokenshards.pipeline.errors`.
    """
    return list(predictions(options))


def predictions(options: PredictOptions) -> Iterator[Prediction]:
    """Yield the prediction of each image. Raises what `predict` raises."""
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}; expected at least 1")
    if not options.images:
        raise ConfigError("images is empty; expected at least one image or folder of images")
    store = Store(options.run, storage_options=parse_options(options.storage_option))
    place = choose_device(options.device)
    model, found = open_classifier(store, options.weights, place)
    precision = recorded_precision(found.train.precision, place)
    tokenizer = load_tokenizer(store, "tokenizer")
    source = options.config(options.images[0], options.storage_option)
    for encoded in tokenize_images(options.images, tokenizer, config=source):
        probabilities_BC = () if encoded.tokens is None else evaluate.predict(model, encoded.tokens, place, precision)
        for name, row in zip(encoded.names, probabilities_BC, strict=True):
            best = (-row).argsort()[: options.top]
            yield Prediction(name, tuple((found.classes[index], float(row[index])) for index in best))
        for name, reason in encoded.failed:
            yield Prediction(name, error=reason)
