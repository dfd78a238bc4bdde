"""`verify`, `repair` and `retry-failed`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from tokenshards.pipeline.commands.options import (
    UNREFERENCED_SHOWN,
    Address,
    AllowPrivateHosts,
    CpusPerActor,
    GpusPerActor,
    JsonFlag,
    MaxActors,
    Out,
    OutOptions,
    Quiet,
    RunnerName,
    SrcOptions,
    StorageOptions,
    Workers,
    recorded_source,
    side_options,
)
from tokenshards.pipeline.commands.output import counted_shards, finish_run, print_json
from tokenshards.pipeline.commands.process import one_blas_thread, open_runner, prepare_for_torch
from tokenshards.pipeline.commands.source_options import ACCESS, takes_source

__all__ = ["app"]

app = typer.Typer()


@app.command("verify", epilog="Example: tokenshards verify photos.tokens")
def verify_command(
    out: Out,
    sample: Annotated[int | None, typer.Option(help="Spot check: check only so many random shards.")] = None,
    first_shard: Annotated[int, typer.Option(help="Continue a check that was stopped at this shard.")] = 0,
    re_encode: Annotated[int | None, typer.Option(metavar="N", help="Encode N rows again from their source and compare the ids.")] = None,
    source: Annotated[str | None, typer.Option(help="New place of the source if it moved; for --re-encode.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the choice of N rows.", show_default="a new seed, which is printed")] = None,
    min_agreement: Annotated[float, typer.Option(help="Smallest share of equal ids in the N rows.")] = 0.99,
    storage_option: StorageOptions = None,
    src_option: SrcOptions = None,
    out_option: OutOptions = None,
    allow_private_hosts: AllowPrivateHosts = False,
    as_json: JsonFlag = False,
) -> None:
    """Check every object, checksum and count; report each damaged object and exit with code 1 on any damage."""
    one_blas_thread()
    prepare_for_torch()
    import random
    from dataclasses import asdict

    from tokenshards.pipeline.config import SourceConfig
    from tokenshards.pipeline.errors import ConfigError
    from tokenshards.pipeline.ledger.reencode import ReencodingConfig, reencode_sample
    from tokenshards.pipeline.ledger.verify import verify_dataset
    from tokenshards.pipeline.reports.terminal import TerminalReporter, print_table
    from tokenshards.pipeline.storage.store import Store
    from tokenshards.pipeline.words import counted

    again = None
    if re_encode is not None:
        drawn_by = random.randrange(1 << 31) if seed is None else seed
        again = ReencodingConfig(rows=re_encode, seed=drawn_by, min_agreement=min_agreement, source_url=source)
    elif source is not None or seed is not None:
        raise ConfigError("--source or --seed was given without --re-encode; expected --re-encode N too")
    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    with counted_shards(TerminalReporter(quiet=as_json)) as on_shard:
        found = verify_dataset(store, sample=sample, first_shard=first_shard, on_shard=on_shard)
    compared = None
    if again is not None and found.ok:  # a damaged dataset must be repaired before a comparison makes sense
        where = source or (found.state.chain[0].source["url"] if found.state.chain else "")
        reading = SourceConfig(
            storage_options=side_options("src", where, storage_option, src_option),
            allow_private_hosts=allow_private_hosts,
            unreadable="quarantine",
        )
        compared = reencode_sample(store, found.state, again, reading)
    ok = found.ok and (compared is None or compared.ok)
    if as_json:
        problems = [asdict(problem) for problem in found.problems]
        counts: dict[str, Any] = {"shards_checked": found.shards_checked, "rows_checked": found.rows_checked, "complete": found.complete}
        print_json(
            {
                "ok": ok,
                **counts,
                **({"shards_open": found.shards_open} if found.shards_open else {}),
                **({} if found.masks is None else {"mask": found.masks.to_json()}),
                "problems": problems,
                "unreferenced": found.unreferenced,
                **({} if compared is None else {"re_encoded": compared.to_json()}),
            }
        )
    else:
        if found.shards_open:
            total = found.shards_checked + found.shards_open
            shards = f"{found.shards_checked:,} of {counted(total, 'shard exists', 'shards exist')} yet,"
        else:
            shards = f"{counted(found.shards_checked, 'shard')} and"
        masked = "" if found.masks is None else f", {found.masks.images:,} of them with a mask"
        checked = f"{shards} {counted(found.rows_checked, 'row')} checked{masked}"
        print(f"{store.url}: {'ok' if found.ok else counted(len(found.problems), 'problem')}, {checked}")
        print_table([(problem.object, problem.kind, problem.detail) for problem in found.problems])
        if found.damaged:
            print(f"See what can be repaired with: tokenshards repair {store.url}")
        elif found.problems:
            print("Nothing is damaged, so there is nothing to repair: the same `tokenshards tokenize` continues the job")
        if found.problems and again is not None:
            print("No row was encoded again: repair or finish the dataset first")
        if found.unreferenced:
            objects = counted(len(found.unreferenced), "object in shards/ is", "objects in shards/ are")
            print(f"note: {objects} unreferenced, but a glob such as shards/*.parquet reads what lies there:")
            print_table([(path,) for path in found.unreferenced[:UNREFERENCED_SHOWN]])
            print(f"`tokenshards repair {store.url} --min-age 0 --apply` removes the ones that tokenshards wrote")
        for line in [] if compared is None else compared.lines():
            print(line)
    if not ok:
        raise typer.Exit(1)


@app.command("repair", epilog="Example: tokenshards repair photos.tokens --apply")
def repair_command(
    out: Out,
    apply: Annotated[bool, typer.Option("--apply", help="Carry out the repair; without this, only print the steps.")] = False,
    min_age: Annotated[float, typer.Option(help="Smallest age in hours of an unreferenced object to delete.")] = 24.0,
    source: Annotated[str | None, typer.Option(help="Where the source is now, if it moved.")] = None,
    storage_option: StorageOptions = None,
    src_option: SrcOptions = None,
    out_option: OutOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Repair a damaged dataset from its intact objects. A dry run unless --apply is given."""
    from dataclasses import asdict

    from tokenshards.pipeline.ledger.repair import repair_dataset
    from tokenshards.pipeline.reports.terminal import print_table
    from tokenshards.pipeline.storage.store import Store

    store = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    options = side_options("src", source or recorded_source(store), storage_option, src_option)
    repair = repair_dataset(store, apply=apply, min_age_seconds=3600 * min_age, source_url=source, source_options=options)
    if as_json:
        steps = [asdict(step) for step in repair.steps]
        print_json({"applied": repair.applied, "tokenize_needed": repair.tokenize_needed, "steps": steps, "foreign": repair.foreign})
    else:
        done = "done" if apply else "would do (add --apply)"
        print(f"{store.url}: {f'{done}:' if repair.steps else 'nothing to repair'}")
        if repair.steps:
            print_table([(step.action, step.object, step.detail) for step in repair.steps])
        for path in repair.foreign:
            print(f"note: {path} is not an object of tokenshards, so it is kept; move it away, because a glob over its folder reads it")
        if repair.tokenize_needed:
            print(f"Then run the same `tokenshards tokenize SRC {store.url}` again: it does the missing work.")
    if repair.refused:
        raise typer.Exit(1)


@app.command("retry-failed", epilog="Example: tokenshards retry-failed photos.tokens")
@takes_source(only=ACCESS)
def retry_failed_command(
    out: Out,
    source: Annotated[str | None, typer.Option(help="Where the source is now, if it moved.")] = None,
    workers: Workers = None,
    runner: RunnerName = "local",
    address: Address = None,
    max_actors: MaxActors = None,
    cpus_per_actor: CpusPerActor = 1,
    gpus_per_actor: GpusPerActor = 0.0,
    reading: Any = None,
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Retry the quarantined inputs as a new generation; older shards are not changed."""
    from tokenshards.pipeline.config import RayConfig, RunConfig
    from tokenshards.pipeline.conversion.tokenize import retry_failed
    from tokenshards.pipeline.reports.terminal import TerminalReporter
    from tokenshards.pipeline.storage.store import Store

    options = side_options("out", out, storage_option, out_option)
    access = reading(source or recorded_source(Store(out, storage_options=options)))
    run = RunConfig(workers=workers, max_bad=1.0)
    cluster = RayConfig(address=address, max_actors=max_actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=gpus_per_actor)
    reporter = TerminalReporter(quiet=quiet)
    outcome = retry_failed(out, source, run, options, reporter, open_runner(runner, run, cluster), access)
    if outcome is None:
        print(json.dumps({"retried": 0}) if as_json else f"{Store(out, storage_options=options).url}: nothing is in quarantine")
        return
    finish_run(out, options, outcome, as_json, quiet)
