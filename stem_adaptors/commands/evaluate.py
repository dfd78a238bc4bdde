"""`evaluate`: the accuracy of a run on token shards or images."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    JsonFlag,
    StorageOptions,
    Workers,
    parse_options,
)
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch, worker_count
from tokenshards.pipeline.commands.source_options import takes_source
from tokenshards.stem_adaptors.commands.options import Device, Weights

__all__ = ["app"]

app = typer.Typer()


@app.command("evaluate", epilog="Example: tokenshards evaluate run photos_val --confusion confusion.png")
@takes_source(without=["tars_per_shard", "unreadable"])
def evaluate_command(
    run: Annotated[str, typer.Argument(help="Run directory made by `train`.")],
    data: Annotated[str | None, typer.Argument(help="Dataset of tokens with labels.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Measure on images instead: a folder with a sub-folder per class, tars or tables.")
    ] = None,
    confusion: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the confusion matrix, of up to 2,000 classes.")] = None,
    weights: Weights = "best",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    device: Device = "auto",
    workers: Workers = None,
    reading: Any = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Top-1, top-5 and per-class accuracy of a run, measured on token shards or on images that are tokenized first."""
    prepare_for_torch()
    import tempfile
    from pathlib import Path

    from tokenshards.pipeline.devices import choose_device
    from tokenshards.pipeline.errors import ConfigError
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.shards import open_dataset
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.stem_adaptors.commands.evaluation_report import evaluate_run, require_confusion

    options = parse_options(storage_option)
    if (data is None) == (images is None):
        raise ConfigError("evaluate takes either a DATA argument or --images DIR; expected exactly one of them")
    store = Store(run, storage_options=options)
    place = choose_device(device)
    if confusion is not None:
        require_confusion(store)
    how: dict[str, Any] = {"weights": weights, "device": place, "batch_size": batch_size, "confusion": confusion is not None}
    if data is not None:
        report = evaluate_run(store, open_dataset(data, storage_options=options), **how)
    else:
        with tempfile.TemporaryDirectory(prefix="tokenshards-evaluate-") as folder:
            _tokenize_for(run, str(images), folder, reading(images), worker_count(workers), options)
            report = evaluate_run(store, open_dataset(folder), **how)
    if confusion is not None:
        target = Path(confusion).resolve()
        Store(str(target.parent)).write(target.name, report.confusion_png())
    if as_json:
        print_json(report.to_json())
        return
    for title, rows in report.tables():
        print_table(rows, title=title)
    if confusion is not None:
        print(f"confusion matrix drawn in {confusion}")


def _tokenize_for(run: str, images: str, folder: str, reading: Any, workers: int, options: dict[str, Any]) -> None:
    """Tokenize images into a temporary dataset with the tokenizer of a run, in exactly the way that made the run's training set."""
    from tokenshards.pipeline.config import RunConfig
    from tokenshards.pipeline.conversion.request import TokenizeRequest
    from tokenshards.pipeline.conversion.tokenize import Conversion
    from tokenshards.pipeline.reports.terminal import TerminalReporter
    from tokenshards.pipeline.words import counted

    request = TokenizeRequest(
        source_url=images,
        out_url=folder,
        tokenizer_url=f"{run.rstrip('/')}/tokenizer",
        source=reading,
        run=RunConfig(workers=workers, max_bad=1.0),
        tokenizer_options=options,
    )
    reporter = TerminalReporter()
    outcome = Conversion(request, reporter).run()
    if failed := outcome.manifest.totals["images_quarantined"]:
        reporter.say(f"{counted(failed, 'image cannot be read and is', 'images cannot be read and are')} left out")
