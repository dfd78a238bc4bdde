"""`publish`: copy a finished dataset without any trace of where it was made."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import JsonFlag, Out, OutOptions, Quiet, SrcOptions, StorageOptions, side_options
from tokenshards.pipeline.commands.output import counted_shards, print_json

__all__ = ["app"]

app = typer.Typer()


@app.command("publish", epilog="Example: tokenshards publish photos.tokens photos_public")
def publish_command(
    out: Out,
    dest: Annotated[str, typer.Argument(help="Empty place for the copy, local or any fsspec URL.")],
    storage_option: StorageOptions = None,
    src_option: SrcOptions = None,
    out_option: OutOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy a finished dataset for other people, without hosts, paths, logs, plan and quarantine. Run it again to continue."""
    from tokenshards.pipeline.ledger.public_copy import publish_dataset
    from tokenshards.pipeline.reports.terminal import TerminalReporter
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.words import counted

    store = Store(out, storage_options=side_options("src", out, storage_option, src_option))
    to = Store(dest, storage_options=side_options("out", dest, storage_option, out_option))
    reporter = TerminalReporter(quiet=quiet or as_json)
    with counted_shards(reporter) as on_shard:
        made = publish_dataset(store, to, on_shard)
    if as_json:
        print_json(made.to_json())
        return
    if not made.card:
        reporter.say(f"note: {made.url}/README.md is not a card written by tokenshards, so it is kept unchanged")
    if not quiet:
        print(
            f"{made.url}: {counted(made.images, 'image')} in {counted(made.shards, 'shard')}, {made.bytes_shards:,} bytes; "
            f"{counted(made.copied, 'shard')} copied"
        )
        print(f"Sample ids, labels and meta columns are unchanged. Check the copy with: tokenshards verify {made.url}")
