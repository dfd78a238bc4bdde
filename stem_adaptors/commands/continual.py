"""`continual`: print what classifiers keep of classes that come in groups, with a replay memory of some bytes."""

from __future__ import annotations

import typer

from tokenshards.pipeline.commands.options import takes
from tokenshards.pipeline.commands.output import doubts_as_json, print_json
from tokenshards.pipeline.commands.process import one_blas_thread, prepare_for_torch
from tokenshards.stem_adaptors.commands.continual_options import ContinualOptions

__all__ = ["app"]

app = typer.Typer()


@app.command("continual", epilog="Example: tokenshards continual photos_train --val photos_val --replay 20kB,100kB --to replay.html")
@takes(ContinualOptions)
def continual_command(options: ContinualOptions) -> None:
    """Measure what is forgotten where classes come one group after another, with a replay memory of so many bytes."""
    one_blas_thread()
    prepare_for_torch()
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.stem_adaptors.commands.learning_continually import run_continual
    from tokenshards.stem_adaptors.continual.table import HEADER, SHORT, footnotes, matrices_of, rows_of

    with doubts_as_json(options.as_json):
        found = run_continual(options)
    if options.as_json:
        print_json(found.to_json())
        return
    header = tuple(HEADER[place] for place in SHORT)
    print_table(rows_of(found, SHORT), title=f"{found.out}: all figures are in continual.json", header=header)
    for note in footnotes(found):
        print(note.replace("`", ""))
    for name, header, rows in matrices_of(found) if options.matrix else ():
        print_table(rows, title=f"{name}: accuracy on each group after each step, mean over seeds", header=header)
    for place in options.to or ():
        print(f"wrote {place}")
