"""`status`, `inspect` and `quarantine`: progress, content and failed inputs of a dataset."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    QUARANTINE_SHOWN,
    JsonFlag,
    Out,
    OutOptions,
    StorageOptions,
    side_options,
)
from tokenshards.pipeline.commands.output import print_json, print_way_out, way_to_retry

__all__ = ["app"]

app = typer.Typer()
EXAMPLES_SHOWN = 3
"""Inputs shown of each reason; all reasons in one table must fit on a screen."""


@app.command("status", epilog="Example: tokenshards status s3://bucket/tokens --json")
def status_command(out: Out, storage_option: StorageOptions = None, out_option: OutOptions = None, as_json: JsonFlag = False) -> None:
    """Show the progress of a dataset and its live runs; reads only the store."""
    import time

    from tokenshards.pipeline.errors import MissingObjectError, NotFoundError
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
            raise NotFoundError(
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
    print_way_out(store.url, report.images_quarantined, closed=report.complete or report.generation > 1)


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
    export: Annotated[str | None, typer.Option(metavar="DIR", help="Write the kept bytes of these inputs to a local folder.")] = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """List the inputs that failed permanently by reason, with examples; inputs that a retry has committed are not listed."""
    from tokenshards.pipeline.ledger.failing_hosts import FailingHosts
    from tokenshards.pipeline.reports.quarantine import QuarantineCounts, quarantined_inputs
    from tokenshards.pipeline.reports.quarantine_export import export_inputs
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.shards.manifest import load_pointer
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.words import counted

    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    counts, hosts, listed = QuarantineCounts(), FailingHosts(), []
    most = QUARANTINE_SHOWN if reason is not None else EXAMPLES_SHOWN

    def rows() -> Iterator[dict[str, Any]]:
        for row in quarantined_inputs(store, reason, with_bytes=export is not None):
            about = {name: value for name, value in row.items() if name != "data"}
            counts.add(about, most)
            hosts.add(row["uri"], row["stage"], row["reason"])
            if as_json:
                listed.append(about)
            yield row

    exported = None
    if export is not None:
        exported = export_inputs(rows(), export)
    else:
        deque(rows(), maxlen=0)
    if as_json:
        more = {} if exported is None else {"exported": asdict(exported)}
        about = {"quarantined": counts.total, "reasons": dict(sorted(counts.reasons.items())), "hosts": hosts.to_json()}
        print_json({**about, "inputs": listed, **more})
        return
    reasons = ", ".join(f"{count:,} {name}" for name, count in sorted(counts.reasons.items()))
    print(f"{store.url}: {counted(counts.total, 'input')} in quarantine{f' ({reasons})' if reasons else ''}")
    if counts.total:
        print_table(counts.rows(), header=("reason", "inputs", "such as", "detail"))
    if line := hosts.describe():
        print(line)
    if counts.total > sum(map(len, counts.examples.values())):
        print("--reason NAME lists more of one reason, --json all of them")
    if exported is not None:
        bare = counted(exported.without_bytes, "input has", "inputs have")
        missing = f"; {bare} no file, because the bytes are not kept" if exported.without_bytes else ""
        files = counted(exported.files, "file is", "files are")
        print(f"{files} in {exported.folder}; index.csv says which input each file is{missing}")
    elif counts.total:
        print(f"To look at their bytes: tokenshards quarantine {store.url} --export DIR")
    if counts.total:
        print(f"After you repair their files, {way_to_retry(store.url, closed=load_pointer(store) is not None)}")
