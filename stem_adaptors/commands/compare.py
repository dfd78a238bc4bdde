"""`compare`: print a table of tokenizers, measured on the same images."""

from __future__ import annotations

import typer

from tokenshards.pipeline.commands.options import takes
from tokenshards.pipeline.commands.output import doubts_as_json, print_json
from tokenshards.pipeline.commands.process import one_blas_thread, prepare_for_torch
from tokenshards.stem_adaptors.commands.compare_options import CompareOptions

__all__ = ["app"]

app = typer.Typer()


@app.command(
    "compare",
    epilog="Example: tokenshards compare patch-kmeans layered-kmeans --images photos/train --val photos/val --to table.html",
)
@takes(CompareOptions)
def compare_command(options: CompareOptions) -> None:
    """Compare tokenizers on your images: bytes, fidelity, speed, and what classifiers learn, beside JPEG, WebP and pixels."""
    one_blas_thread()
    prepare_for_torch()
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.stem_adaptors.commands.comparing import run_comparison
    from tokenshards.stem_adaptors.comparison.table import SHORT, footnotes, rows_of

    with doubts_as_json(options.as_json):
        found = run_comparison(options)
    if options.as_json:
        print_json(found.to_json())
        return
    print_table(rows_of(found, SHORT), title=f"{found.out}: all figures are in comparison.json", header=SHORT)
    for note in footnotes(found):
        print(note.replace("`", ""))
    for place in options.to or ():
        print(f"wrote {place}")
