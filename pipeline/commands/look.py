"""`status`, `inspect` and `quarantine`: progress, content and failed inputs of a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import (
    QUARANTINE_SHOWN,
    JsonFlag,
    Out,
    OutOptions,
    StorageOptions,
    side_options,
)
from tokenshards.pipeline.commands.output import print_json, print_way_out

__all__ = ["app"]

app = typer.Typer()


@app.command("status", epilog="Example: tokenshards status s3://bucket/tokens --json")
def status_command(out: Out, storage_option: StorageOptions = None, out_option: OutOptions = None, as_json: JsonFlag = False) -> None:
    """Show the progress of a dataset and its live runs; reads only the store."""
    import time

    from tokenshards.pipeline.errors import MissingObjectError
    from tokenshards.pipeline.ledger.heartbeat import PLANNING, live_runs
    from tokenshards.pipeline.reports.storage_table import status_report
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.storage.store import Store

    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    runs = live_runs(store)
    try:
        report = status_report(store)
    except MissingObjectError as error:
        planning = [record for record in runs if record.plan_id == PLANNING]
        if error.object_path != store.url:
            raise
        if not planning:
            raise MissingObjectError(
                store.url,
                "no dataset is here yet. A job that was just submitted starts within a minute and then lists its inputs: ask again. "
                "Else expected the OUT folder of `tokenshards tokenize`",
            ) from None
        if as_json:
            print_json({"complete": False, "planning": True, "live_runs": [record.uuid for record in planning]})
        else:
            print(f"{store.url}: the inputs are being listed, there is no plan yet ({planning[0].describe(time.time())}). Ask again soon")
        return
    if as_json:
        print_json({**report.to_json(), "live_runs": [record.uuid for record in runs]})
        return
    rows = [*report.rows(), *(("at work", record.describe(time.time())) for record in runs)]
    print_table(rows, title=store.url)
    print_way_out(store.url, report)


@app.command("inspect", epilog="Example: tokenshards inspect photos.tokens --plot usage.png")
def inspect_command(
    out: Annotated[str, typer.Argument(help="Dataset or tokenizer directory.")],
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", help="Write a plot of the code usage.")] = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Show spec, storage table, classes and code usage of a dataset or tokenizer."""
    from tokenshards.pipeline.reports.inspection import inspect_dataset
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.storage.store import Store

    inspection = inspect_dataset(Store(out, storage_options=side_options("out", out, storage_option, out_option)))
    if plot is not None:
        inspection.plot(plot)
    if as_json:
        print_json(inspection.to_json())
        return
    for title, rows in inspection.tables():
        print_table(rows, title=title)
        print()
    print(inspection.usage_text())
    if plot is not None:
        print(f"code usage drawn in {plot}")


@app.command("quarantine", epilog="Example: tokenshards quarantine photos.tokens --reason truncated")
def quarantine_command(
    out: Out,
    reason: Annotated[str | None, typer.Option(help="Only inputs that failed for this reason, such as `truncated`.")] = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """List the inputs that failed permanently, each with its reason; inputs that a retry has committed are not listed."""
    from collections import Counter

    from tokenshards.pipeline.reports.quarantine import quarantined_inputs
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.storage.store import Store

    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    found = list(quarantined_inputs(store, reason))
    reasons = dict(sorted(Counter(row["reason"] for row in found).items()))
    if as_json:
        print_json({"quarantined": len(found), "reasons": reasons, "inputs": found})
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in reasons.items())
    print(f"{store.url}: {len(found):,} inputs in quarantine{f' ({counts})' if counts else ''}")
    shown = found[:QUARANTINE_SHOWN]
    if shown:
        print_table([(row["sample_id"], row["reason"], row["detail"]) for row in shown], header=("input", "reason", "detail"))
    if len(found) > len(shown):
        print(f"and {len(found) - len(shown):,} more; --json prints all of them")
    if found:
        print(f"After you repair their files, retry them with: tokenshards retry-failed {store.url}")
