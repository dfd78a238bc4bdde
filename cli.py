"""The command line of tokenshards. Only typer is imported here; everything else is imported inside the command that needs it."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _Stopped(Exception):
    """Ctrl-C, as an exception that click does not swallow."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None


app = typer.Typer(
    cls=_Commands,
    help="Turn image buckets into verified, compressed shards of discrete tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `tokenshards demo`, or `tokenshards tokenize IMAGES OUT`.",
)

Source = Annotated[str, typer.Argument(help="Images: a folder, tars (globs and {000..123} braces) or tables, local or any fsspec URL.")]
Out = Annotated[str, typer.Argument(help="Dataset root, local or any fsspec URL.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")]
StorageOptions = Annotated[
    list[str] | None, typer.Option("--storage-option", help="key=value for the store (endpoint, profile, …); may be repeated.")
]
AllFiles = Annotated[bool, typer.Option("--all-files", help="Take every file, not only those with an image extension.")]
ImageColumn = Annotated[str | None, typer.Option(help="Table column with image bytes or URIs. Default: found by name.")]
IdColumn = Annotated[str | None, typer.Option(help="Table column whose values become sample ids. Default: path#row.")]
LabelName = Annotated[str | None, typer.Option("--label", help="Table column, or key of a tar's .json, with the label.")]
Meta = Annotated[list[str] | None, typer.Option("--meta", help="Table column or .json key to keep as meta.NAME; may be repeated.")]
TarsPerShard = Annotated[int, typer.Option(help="Tars that make one shard.")]
Size = Annotated[int | None, typer.Option(help="Side of the square image in pixels. Default: largest of 32, 64, 128 that fits.")]
Patch = Annotated[int, typer.Option(help="Side of a patch in pixels.")]
Levels = Annotated[int, typer.Option(help="Residual levels, one id each per patch.")]
Codes = Annotated[int, typer.Option(help="Codes per level.")]
Sample = Annotated[int, typer.Option(help="Images to fit on, at most.")]
Seed = Annotated[int, typer.Option(help="Seed of the sample and the fit.")]
Codec = Annotated[str, typer.Option(help="How ids are stored: `default` (fast, every Parquet reader) or `publish` (smallest).")]
ShardRows = Annotated[int | None, typer.Option(help="Images per shard.", show_default="10000, fewer for a small data set")]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Tokenizer directory, or another dataset (whose class table is then kept). Default: fit one.")
]
Workers = Annotated[int | None, typer.Option(help="Worker processes.", show_default="all cores")]
MaxBad = Annotated[float, typer.Option(help="Stop when a larger share of the inputs fails for good.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]


def _options(pairs: list[str] | None) -> dict[str, Any]:
    from pipeline.errors import ConfigError

    options: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError("--storage-option was given without key=value; expected such as endpoint_url=http://host:9000")
        try:
            options[key] = json.loads(value)  # numbers, true and nested options such as client_kwargs={"region_name": "x"}
        except ValueError:
            options[key] = value
    return options


def _workers(asked: int | None) -> int:
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # cores given to this process


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


@app.command("fit-tokenizer", epilog="Example: tokenshards fit-tokenizer photos/ photos.tok --size 128 --levels 2")
def fit_tokenizer_command(
    src: Source,
    out: Annotated[str, typer.Argument(metavar="OUT.tok", help="Directory for tokenizer.json and codebook.safetensors.")],
    size: Size = None,
    patch: Patch = 4,
    levels: Levels = 2,
    codes: Codes = 256,
    sample: Sample = 20_000,
    seed: Seed = 0,
    all_files: AllFiles = False,
    image_column: ImageColumn = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit the default tokenizer (residual k-means on image patches) to a sample of your images."""
    from pipeline.config import FitConfig, SourceConfig
    from pipeline.fitting import fit_tokenizer
    from pipeline.planning import Listing
    from pipeline.reports.storage import fit_rows
    from pipeline.reports.terminal import TerminalReporter, print_table
    from pipeline.sources import open_source
    from pipeline.storage import Store
    from pipeline.tokenizers.base import describe_tokenizer
    from pipeline.tokenizers.directory import save_tokenizer

    options = _options(storage_option)
    config = FitConfig(size=size, patch=patch, levels=levels, codes=codes, sample=sample, seed=seed)
    reporter = TerminalReporter()
    source = open_source(src, SourceConfig(all_files=all_files, image_column=image_column, storage_options=options))
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=sample, sample_seed=seed) as listing:
        for line in source.summary.lines():
            reporter.say(line)
        fitted = fit_tokenizer(source, listing.sample, config)
    for note in fitted.notes:
        reporter.say(f"note: {note}")
    store = Store(out, storage_options=options)
    save_tokenizer(fitted.tokenizer, store, "", fitted.statistics)
    if as_json:
        _print_json({"fingerprint": fitted.tokenizer.spec.fingerprint, **fitted.statistics})
        return
    print_table(fit_rows(fitted.statistics), title=f"{store.url}: {describe_tokenizer(fitted.tokenizer)}")


@app.command("tokenize", epilog="Example: tokenshards tokenize photos/ photos.tokens --workers 8")
def tokenize_command(
    src: Source,
    out: Out,
    tokenizer: TokenizerOption = None,
    shard_rows: ShardRows = None,
    codec: Codec = "default",
    workers: Workers = None,
    max_bad: MaxBad = 0.01,
    runner: Annotated[str, typer.Option(help="Where the work runs: `local`, all cores of this machine.")] = "local",
    size: Size = None,
    patch: Patch = 4,
    levels: Levels = 2,
    codes: Codes = 256,
    sample: Sample = 20_000,
    seed: Seed = 0,
    all_files: AllFiles = False,
    image_column: ImageColumn = None,
    id_column: IdColumn = None,
    label: LabelName = None,
    meta: Meta = None,
    tars_per_shard: TarsPerShard = 1,
    join: Annotated[bool, typer.Option("--join", help="Share the work with another run on the same OUT.")] = False,
    stall_timeout: Annotated[float, typer.Option(help="Seconds without a sign after which a worker is replaced.")] = 300.0,
    retry_attempts: Annotated[int, typer.Option(help="Times a failing store operation is tried.")] = 5,
    license_text: Annotated[str, typer.Option("--license", help="Licence of the images, for the dataset card.")] = "",
    storage_option: StorageOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn images into token shards. Run the same command again to continue; a complete dataset is left as it is."""
    from pipeline.config import FitConfig, PlanConfig, RetryConfig, RunConfig, SourceConfig
    from pipeline.conversion import Conversion
    from pipeline.errors import ConfigError
    from pipeline.reports.terminal import TerminalReporter
    from pipeline.request import TokenizeRequest

    if runner != "local":
        raise ConfigError(f"--runner is {runner!r}; expected local")
    options = _options(storage_option)
    request = TokenizeRequest(
        source_url=src,
        out_url=out,
        tokenizer_url=tokenizer,
        fit=FitConfig(size=size, patch=patch, levels=levels, codes=codes, sample=sample, seed=seed),
        source=SourceConfig(
            all_files=all_files,
            image_column=image_column,
            id_column=id_column,
            label=label,
            meta=tuple(meta or ()),
            tars_per_shard=tars_per_shard,
            storage_options=options,
        ),
        plan=PlanConfig(shard_rows=shard_rows, codec=codec),
        run=RunConfig(
            workers=_workers(workers),
            max_bad=max_bad,
            join=join,
            stall_timeout_seconds=stall_timeout,
            retry=RetryConfig(attempts=retry_attempts),
        ),
        out_options=options,
        card={"licence": license_text} if license_text else {},
    )
    outcome = Conversion(request, TerminalReporter(quiet=quiet)).run()
    _finish(out, options, outcome, as_json, quiet)


def _finish(out: str, options: dict[str, Any], outcome: Any, as_json: bool, quiet: bool) -> None:
    from pipeline.reports.storage import dataset_report
    from pipeline.reports.terminal import print_table
    from pipeline.storage import Store

    store = Store(out, storage_options=options)
    rate = None if outcome.already_complete or not outcome.images else outcome.images / max(1e-9, outcome.seconds)
    report = dataset_report(store, rate)
    if as_json:
        _print_json(report.to_json())
    elif not quiet:
        print_table(report.rows(), title=f"{store.url}: {'already complete' if outcome.already_complete else 'complete'}")


@app.command("plan", epilog="Example: tokenshards plan s3://bucket/photos s3://bucket/tokens --price-per-hour 1.20 --workers 32")
def plan_command(
    src: Source,
    out: Out,
    tokenizer: TokenizerOption = None,
    shard_rows: ShardRows = None,
    codec: Codec = "default",
    workers: Workers = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Price of the machine per hour, in your currency.")] = None,
    size: Size = None,
    patch: Patch = 4,
    levels: Levels = 2,
    codes: Codes = 256,
    seed: Seed = 0,
    all_files: AllFiles = False,
    image_column: ImageColumn = None,
    label: LabelName = None,
    tars_per_shard: TarsPerShard = 1,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Dry run: list the inputs, time a small sample, and print what the job would take. Writes nothing."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"  # before numpy is imported: what is timed here is one worker, and a worker has one thread
    from pipeline.config import FitConfig, PlanConfig, SourceConfig
    from pipeline.conversion import adopt_tokenizer
    from pipeline.estimate import estimate_job
    from pipeline.plan import load_plan
    from pipeline.reports.terminal import TerminalReporter, print_table
    from pipeline.storage import Store

    options = _options(storage_option)
    reporter = TerminalReporter()
    store = Store(out, storage_options=options)
    existing = load_plan(store)
    if existing is not None:
        reporter.say(f"{store.url} already holds plan {existing.plan_id[:12]}; `tokenize` would continue it. This estimates a new one")
    estimate = estimate_job(
        src,
        SourceConfig(all_files=all_files, image_column=image_column, label=label, tars_per_shard=tars_per_shard, storage_options=options),
        PlanConfig(shard_rows=shard_rows, codec=codec),
        FitConfig(size=size, patch=patch, levels=levels, codes=codes, seed=seed),
        tokenizer=adopt_tokenizer(tokenizer, options)[0] if tokenizer else None,
        workers=_workers(workers),
        price_per_hour=price_per_hour,
    )
    if as_json:
        _print_json(estimate.to_json())
        return
    for line in estimate.matched:
        reporter.say(line)
    print_table(estimate.rows(), title=f"{store.url}: nothing was written")


@app.command("status", epilog="Example: tokenshards status s3://bucket/tokens --json")
def status_command(out: Out, storage_option: StorageOptions = None, as_json: JsonFlag = False) -> None:
    """How far a dataset is, and who works on it, from the store alone."""
    import time

    from pipeline.heartbeat import live_runs
    from pipeline.reports.storage import dataset_report
    from pipeline.reports.terminal import print_table
    from pipeline.storage import Store

    store = Store(out, storage_options=_options(storage_option))
    report = dataset_report(store)
    runs = live_runs(store)
    if as_json:
        _print_json({**report.to_json(), "live_runs": [record.uuid for record in runs]})
        return
    rows = [*report.rows(), *(("at work", record.describe(time.time())) for record in runs)]
    print_table(rows, title=store.url)


@app.command("verify", epilog="Example: tokenshards verify photos.tokens")
def verify_command(
    out: Out,
    sample: Annotated[int | None, typer.Option(help="Spot check: so many random shards only.")] = None,
    first_shard: Annotated[int, typer.Option(help="Continue a check that was stopped at this shard.")] = 0,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every object, checksum and count. Exit code 1 and the object named on any damage."""
    from dataclasses import asdict

    from pipeline.reports.terminal import TerminalReporter, print_table
    from pipeline.storage import Store
    from pipeline.verification import verify_dataset

    store = Store(out, storage_options=_options(storage_option))
    reporter = TerminalReporter(quiet=as_json)
    begun = False

    def on_shard(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            reporter.begin(total, 0, "shards")
            begun = True
        reporter.count(done)

    try:
        found = verify_dataset(store, sample=sample, first_shard=first_shard, on_shard=on_shard)
    finally:
        reporter.end()
    if as_json:
        problems = [asdict(problem) for problem in found.problems]
        counts = {"shards_checked": found.shards_checked, "rows_checked": found.rows_checked, "complete": found.complete}
        _print_json({"ok": found.ok, **counts, "problems": problems})
    else:
        checked = f"{found.shards_checked:,} shards and {found.rows_checked:,} rows checked"
        print(f"{store.url}: {'ok' if found.ok else f'{len(found.problems)} problems'}, {checked}")
        print_table([(problem.object, problem.kind, problem.detail) for problem in found.problems])
        if found.problems:
            print(f"See what can be mended with: tokenshards repair {store.url}")
    if not found.ok:
        raise typer.Exit(1)


@app.command("repair", epilog="Example: tokenshards repair photos.tokens --apply")
def repair_command(
    out: Out,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without this only the plan is printed.")] = False,
    min_age: Annotated[float, typer.Option(help="Hours that an unreferenced object must be old before it is deleted.")] = 24.0,
    source: Annotated[str | None, typer.Option(help="Where the source is now, if it moved.")] = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Mend a damaged dataset from what is left. A dry run unless --apply is given."""
    from dataclasses import asdict

    from pipeline.repair import repair_dataset
    from pipeline.reports.terminal import print_table
    from pipeline.storage import Store

    options = _options(storage_option)
    store = Store(out, storage_options=options)
    repair = repair_dataset(store, apply=apply, min_age_seconds=3600 * min_age, source_url=source, source_options=options)
    if as_json:
        steps = [asdict(step) for step in repair.steps]
        _print_json({"applied": repair.applied, "tokenize_needed": repair.tokenize_needed, "steps": steps})
    else:
        done = "done" if apply else "would do (add --apply)"
        print(f"{store.url}: {f'{done}:' if repair.steps else 'nothing to repair'}")
        if repair.steps:
            print_table([(step.action, step.object, step.detail) for step in repair.steps])
        if repair.tokenize_needed:
            print(f"Then run the same `tokenshards tokenize SRC {store.url}` again: it does what is missing.")
    if repair.refused:
        raise typer.Exit(1)


@app.command("retry-failed", epilog="Example: tokenshards retry-failed photos.tokens")
def retry_failed_command(
    out: Out,
    source: Annotated[str | None, typer.Option(help="Where the source is now, if it moved.")] = None,
    workers: Workers = None,
    storage_option: StorageOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Try the quarantined inputs again as a new generation; older shards stay as they are."""
    from pipeline.config import RunConfig
    from pipeline.conversion import retry_failed
    from pipeline.reports.terminal import TerminalReporter

    options = _options(storage_option)
    run = RunConfig(workers=_workers(workers), max_bad=1.0)
    outcome = retry_failed(out, source, run, options, TerminalReporter(quiet=quiet))
    if outcome is None:
        print(json.dumps({"retried": 0}) if as_json else f"{out}: nothing is in quarantine")
        return
    _finish(out, options, outcome, as_json, quiet)


@app.command("inspect", epilog="Example: tokenshards inspect photos.tokens --plot usage.png")
def inspect_command(
    out: Annotated[str, typer.Argument(help="Dataset or tokenizer directory.")],
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", help="Write the code usage as a picture.")] = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Spec, storage table, classes and code usage of a dataset."""
    from pipeline.reports.inspection import inspect_dataset
    from pipeline.reports.terminal import print_table
    from pipeline.storage import Store

    inspection = inspect_dataset(Store(out, storage_options=_options(storage_option)))
    if plot is not None:
        inspection.plot(plot)
    if as_json:
        _print_json(inspection.to_json())
        return
    for title, rows in inspection.tables():
        print_table(rows, title=title)
        print()
    print(inspection.usage_text())
    if plot is not None:
        print(f"code usage drawn in {plot}")


@app.command("preview", epilog="Example: tokenshards preview photos.tokens --to look.png -n 16 --source photos/")
def preview_command(
    out: Out,
    to: Annotated[str, typer.Option(metavar="FILE.png", help="Picture to write.")],
    n: Annotated[int, typer.Option("-n", help="Images to show.")] = 16,
    sample_id: Annotated[list[str] | None, typer.Option("--id", help="Show this sample id; may be repeated.")] = None,
    label: Annotated[str | None, typer.Option("--class", help="Show images of this class only.")] = None,
    source: Annotated[str | None, typer.Option(help="Show the originals beside; the place that was tokenized.")] = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """A picture of what the tokens hold: reconstructions, beside the originals if --source is given."""
    from pipeline.reports.previews import preview_dataset

    options = _options(storage_option)
    shown = preview_dataset(out, to, count=n, sample_ids=tuple(sample_id or ()), label=label, source_url=source, options=options)
    if as_json:
        _print_json(shown.to_json())
    else:
        print(shown.text())


@app.command("demo", epilog="Example: tokenshards demo demo_out")
def demo_command(
    folder: Annotated[str, typer.Argument(help="Folder for the demo's images, datasets and pictures.")] = "demo_out",
) -> None:
    """The whole job on real images that need no download: digits with labels, and tiles of two photographs."""
    from pipeline.demo import run_demo

    run_demo(folder)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from pipeline import __version__

        print(f"tokenshards {__version__}")
        raise typer.Exit


def _terminate(signal_number: int, _frame: object) -> None:
    raise SystemExit(128 + signal_number)  # as an exception, so that workers, temporary files and the heartbeat end in order


def main() -> None:
    """Run the command line; an expected error is one message and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")  # a file name must not stop a job on a terminal that cannot show it
    try:
        app()
    except (KeyboardInterrupt, _Stopped):
        print("\nstopped. Run the same command again: it continues where it was", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe is gone; say nothing more
        sys.exit(1)
    except Exception as error:
        from pipeline.errors import TokenshardsError

        if os.environ.get("TOKENSHARDS_TRACEBACK"):
            raise
        if isinstance(error, MemoryError) or "can't start new thread" in str(error):
            print(f"error: this machine is out of memory or threads ({error}); give it more, or fewer --workers", file=sys.stderr)
            sys.exit(3)
        if isinstance(error, TokenshardsError):
            print(f"error: {error}" + (f"\n{error.hint}" if error.hint else ""), file=sys.stderr)
            sys.exit(error.exit_code)
        print(
            f"error: unexpected {type(error).__name__}: {error}. "
            "This is a bug in tokenshards; run again with TOKENSHARDS_TRACEBACK=1 to see where",
            file=sys.stderr,
        )
        sys.exit(70)


if __name__ == "__main__":
    main()
