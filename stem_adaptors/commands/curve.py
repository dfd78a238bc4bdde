"""`curve`: print how accuracy grows with the bytes that are stored."""

from __future__ import annotations

import typer

from tokenshards.pipeline.commands.options import takes
from tokenshards.pipeline.commands.output import doubts_as_json, print_json
from tokenshards.pipeline.commands.process import one_blas_thread, prepare_for_torch
from tokenshards.stem_adaptors.commands.curve_options import CurveOptions

__all__ = ["app"]

app = typer.Typer()


@app.command("curve", epilog="Example: tokenshards curve photos_train --val photos_val --bytes 0.1MB,0.3MB,1MB --to curve.png")
@takes(CurveOptions)
def curve_command(options: CurveOptions) -> None:
    """Measure what classifiers learn from the tokens that fit budgets of bytes, beside images that fit them."""
    one_blas_thread()
    prepare_for_torch()
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.stem_adaptors.commands.curving import run_curve
    from tokenshards.stem_adaptors.curves.table import HEADER, footnotes, rows_of

    with doubts_as_json(options.as_json):
        found = run_curve(options)
    if options.as_json:
        print_json(found.to_json())
        return
    print_table(rows_of(found), title=f"{found.out}: all figures are in curve.json", header=HEADER)
    for note in footnotes(found):
        print(note.replace("`", ""))
    for place in options.to or ():
        print(f"wrote {place}")
