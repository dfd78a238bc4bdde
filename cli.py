"""The command line of tokenshards. Only typer is imported here; everything else is imported inside the command that needs it."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Stopped(Exception):
    """Ctrl-C, as an exception that click does not swallow."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None


class _SubmitCommand(TyperCommand):
    """`submit` takes what `tokenize` takes, and hands it on: parsed, checked and listed by --help as its own, from one list of options."""

    def _handed_on(self, ctx: Any) -> list[Any]:
        own = {param.name for param in self.params} | {"runner", "join"}  # the job has these two of its own accord
        return [param for param in ctx.parent.command.commands["tokenize"].params if param.name not in own]

    def get_params(self, ctx: Any) -> list[Any]:
        return [*self._handed_on(ctx), *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        arguments: list[str] = []
        values = {param.name: ctx.params.pop(param.name) for param in self._handed_on(ctx)}
        for param in self._handed_on(ctx):
            given = ctx.get_parameter_source(param.name).name == "COMMANDLINE"
            if not given or param.param_type_name != "option":
                continue
            value, name = values[param.name], max(param.opts, key=len)
            if param.is_flag:
                arguments.append(name if value else param.secondary_opts[0])
            else:
                arguments += [f"{name}={one}" for one in (value if param.multiple else [value])]
        ctx.obj = (values, arguments)
        return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Turn image buckets into verified, compressed shards of discrete tokens, and train classifiers from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `tokenshards demo`, or `tokenshards tokenize IMAGES OUT`.",
)

Source = Annotated[str, typer.Argument(help="Images: a folder, tars (globs and {000..123} braces) or tables, local or any fsspec URL.")]
Out = Annotated[str, typer.Argument(help="Dataset root, local or any fsspec URL.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the report as one JSON object on stdout.")]
StorageOptions = Annotated[
    list[str] | None, typer.Option("--storage-option", help="key=value for the store (endpoint_url, profile, …); may be repeated.")
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
Beam = Annotated[int, typer.Option(help="Sums of codes kept of each patch while it is encoded; 8 is closer, and slower.")]
Sample = Annotated[int, typer.Option(help="Images to fit on, at most.")]
Seed = Annotated[int, typer.Option(help="Seed of the sample and the fit.")]
Codec = Annotated[str, typer.Option(help="How ids are stored: `default` (fast, every Parquet reader) or `publish` (smallest).")]
ShardRows = Annotated[int | None, typer.Option(help="Images per shard.", show_default="10000, fewer for a small data set")]
Views = Annotated[
    str,
    typer.Option(help="Views of each picture, a row each: `one`, `flip`, `ten-crop`, or a number N: the usual one and N - 1 random crops."),
]
TokenizerOption = Annotated[
    str | None, typer.Option(help="Tokenizer directory, or another dataset (whose class table is then kept). Default: fit one.")
]
Workers = Annotated[int | None, typer.Option(help="Worker processes.", show_default="all cores")]
MaxBad = Annotated[float, typer.Option(help="Stop when a larger share of the inputs fails for good.")]
RunnerName = Annotated[str, typer.Option("--runner", help="`local`, all cores of this machine, or `ray`, a Ray cluster.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to join, host:port or `auto`.", show_default="$RAY_ADDRESS, a cluster of this machine, or one started for the run"
    ),
]
MaxActors = Annotated[int | None, typer.Option(help="Most tokenizer actors.", show_default="what the cluster can hold at the start")]
CpusPerActor = Annotated[int, typer.Option(help="CPUs of each actor; more than one decode beside the tokenizer.")]
GpusPerActor = Annotated[float, typer.Option(help="GPUs of each actor: a share such as 0.5, or a whole number.")]
DecodePlace = Annotated[
    str, typer.Option(help="Where pictures are decoded: `local`, beside the tokenizer; `remote`, on any CPU; `auto`, as measured.")
]
GiveUpAfter = Annotated[float, typer.Option(help="Stop when nothing moved for so many seconds, because no node came.")]
_VQ = "Training of --kind vq-autoencoder"
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")]


def _options(pairs: list[str] | None, option: str = "--storage-option", such: str = "endpoint_url=http://host:9000") -> dict[str, Any]:
    from pipeline.errors import ConfigError

    options: dict[str, Any] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} was given without key=value; expected such as {such}")
        try:
            options[key] = json.loads(value)  # numbers, true and nested options such as client_kwargs={"region_name": "x"}
        except ValueError:
            options[key] = value
    return options


def _numbers(option: str, text: str | None, kind: type) -> tuple[Any, ...]:
    from pipeline.errors import ConfigError

    try:
        return () if text is None else tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; expected a number, or several with commas between them") from None


def _workers(asked: int | None) -> int:
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # cores given to this process


def _prepare_for_torch() -> None:
    """Before torch is imported: its idle threads sleep, and memory is kept from batch to batch.

    Beside other busy processes, threads that spin made training five times slower; fresh pages took a tenth of a large network's time.
    """
    from pipeline.memory import keep_freed_memory

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()


def _one_blas_thread() -> None:
    """Encode with NumPy as the workers do, before it is imported: more threads are many times slower here, and flip ids."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


@app.command("fit-tokenizer", epilog="Example: tokenshards fit-tokenizer photos/ photos.tok --size 128 --levels 2")
def fit_tokenizer_command(
    src: Source,
    out: Annotated[str, typer.Argument(metavar="OUT.tok", help="Directory for tokenizer.json, codebook and weights.")],
    kind: Annotated[
        str,
        typer.Option(
            help="`patch-kmeans`; `vq-autoencoder`, a small network trained here; `latent-kmeans`, codes for what --encoder gives."
        ),
    ] = "patch-kmeans",
    encoder: Annotated[str | None, typer.Option(help="Weights of a TAESD-family encoder, local or any fsspec URL.")] = None,
    decoder: Annotated[str | None, typer.Option(help="Weights of its decoder, to draw tokens again.")] = None,
    mirrored: Annotated[bool | None, typer.Option("--mirrored", help="Fit latents of mirror images too.")] = None,
    size: Size = None,
    patch: Annotated[int | None, typer.Option(help="Side of a patch, or site, in pixels.", show_default="4")] = None,
    levels: Annotated[
        int | None, typer.Option(help="Residual levels, one id each per site.", show_default="2; latents 1; 1 of fsq, lfq")
    ] = None,
    codes: Annotated[int | None, typer.Option(help="Codes per level.", show_default="256; latents 1024")] = None,
    beam: Annotated[int | None, typer.Option(help="As of `tokenize`.", show_default="1")] = None,
    quantizer: Annotated[
        str | None, typer.Option(help="`vq`, residual for several levels; `fsq` or `lfq`, of one.", show_default="vq", rich_help_panel=_VQ)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Times over the images.", show_default="8", rich_help_panel=_VQ)] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the networks.", show_default="64", rich_help_panel=_VQ)] = None,
    depth: Annotated[int | None, typer.Option(help="Residual blocks of each network.", show_default="2", rich_help_panel=_VQ)] = None,
    code_width: Annotated[int | None, typer.Option(help="Values of a code of vq.", show_default="16", rich_help_panel=_VQ)] = None,
    batch: Annotated[int | None, typer.Option(help="Images of a step.", show_default="32", rich_help_panel=_VQ)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak.", show_default="0.001", rich_help_panel=_VQ)] = None,
    perceptual: Annotated[
        str | None, typer.Option(help="timm model whose features should agree too, such as vgg11.", rich_help_panel=_VQ)
    ] = None,
    perceptual_weights: Annotated[
        str | None, typer.Option(help="Weights of that model, local or any fsspec URL.", rich_help_panel=_VQ)
    ] = None,
    perceptual_weight: Annotated[
        float | None, typer.Option(help="How much it counts beside the squared error.", show_default="0.1", rich_help_panel=_VQ)
    ] = None,
    sample: Sample = 20_000,
    seed: Seed = 0,
    all_files: AllFiles = False,
    image_column: ImageColumn = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Fit a tokenizer to a sample of your images: k-means of patches or of latents of an encoder, or a small network of your own."""
    given = {name: value for name, value in locals().items() if value is not None}
    _prepare_for_torch()
    from pipeline.config import SourceConfig
    from pipeline.fit_kinds import ALL_OPTIONS, open_fit
    from pipeline.planning import Listing
    from pipeline.reports.storage import fit_rows
    from pipeline.reports.terminal import TerminalReporter, print_table
    from pipeline.sources import open_source
    from pipeline.storage import Store
    from pipeline.tokenizers.base import describe_tokenizer
    from pipeline.tokenizers.directory import save_tokenizer

    options, reporter = _options(storage_option), TerminalReporter()
    store = Store(out, storage_options=options)
    given = {name: value for name, value in given.items() if name in ALL_OPTIONS}
    fit = open_fit(kind, given, sample=sample, seed=seed, out=store, storage_options=options, say=reporter.say)
    source = open_source(src, SourceConfig(all_files=all_files, image_column=image_column, storage_options=options))
    with Listing(source.list_rows(), order_seed=0, keep_order=source.ordered, sample=sample, sample_seed=seed) as listing:
        for line in source.summary.lines():
            reporter.say(line)
        fitted = fit.run(source, listing.sample)
    for note in fitted.notes:
        reporter.say(f"note: {note}")
    save_tokenizer(fitted.tokenizer, store, "", fitted.statistics)
    fit.done()
    if as_json:
        _print_json({"fingerprint": fitted.tokenizer.spec.fingerprint, **fitted.statistics})
        return
    print_table(fit_rows(fitted.statistics), title=f"{store.url}: {describe_tokenizer(fitted.tokenizer)}")


@app.command("evaluate-tokenizer", epilog="Example: tokenshards evaluate-tokenizer photos.tok photos/ --sample 1000")
def evaluate_tokenizer_command(
    tokenizer: Annotated[str, typer.Argument(metavar="TOK", help="Tokenizer directory, or a dataset.")],
    images: Annotated[str, typer.Argument(help="Images: a folder, tars or tables, local or any fsspec URL.")],
    sample: Annotated[int, typer.Option(help="Images to measure on, at most.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    all_files: AllFiles = False,
    image_column: ImageColumn = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """PSNR, SSIM, code usage, bits and images per second of a tokenizer on your images; warns of a wrong normalisation."""
    _one_blas_thread()
    _prepare_for_torch()
    from pipeline.config import SourceConfig
    from pipeline.reports.evaluation import evaluate_tokenizer
    from pipeline.reports.terminal import print_table
    from pipeline.tokenizers.base import describe_tokenizer
    from pipeline.tokenizers.directory import load_statistics, load_tokenizer, resolve_tokenizer

    options = _options(storage_option)
    store, prefix = resolve_tokenizer(tokenizer, options)
    measured = load_tokenizer(store, prefix)
    config = SourceConfig(all_files=all_files, image_column=image_column, storage_options=options)
    found = evaluate_tokenizer(measured, load_statistics(store, prefix), images, config, sample=sample, seed=seed)
    if as_json:
        _print_json(found.to_json())
    else:
        print_table(found.rows(), title=f"{store.url}: {describe_tokenizer(measured)}")
    for warning in found.warnings():
        print(f"warning: {warning}", file=sys.stderr)


@app.command("tokenize", epilog="Example: tokenshards tokenize photos/ photos.tokens --workers 8")
def tokenize_command(
    src: Source,
    out: Out,
    tokenizer: TokenizerOption = None,
    shard_rows: ShardRows = None,
    codec: Codec = "default",
    views: Views = "one",
    workers: Workers = None,
    max_bad: MaxBad = 0.01,
    runner: RunnerName = "local",
    address: Address = None,
    max_actors: MaxActors = None,
    cpus_per_actor: CpusPerActor = 1,
    gpus_per_actor: GpusPerActor = 0.0,
    decode: DecodePlace = "auto",
    give_up_after: GiveUpAfter = 3600.0,
    size: Size = None,
    patch: Patch = 4,
    levels: Levels = 2,
    codes: Codes = 256,
    beam: Beam = 1,
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
    retry_attempts: Annotated[int, typer.Option(help="Times a failing store operation is tried.")] = 8,
    license_text: Annotated[str, typer.Option("--license", help="Licence of the images, for the dataset card.")] = "",
    storage_option: StorageOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn images into token shards. Run the same command again to continue; a complete dataset is left as it is."""
    from pipeline.config import FitConfig, PlanConfig, RayConfig, RetryConfig, RunConfig, SourceConfig
    from pipeline.conversion import Conversion
    from pipeline.reports.terminal import TerminalReporter
    from pipeline.request import TokenizeRequest

    cluster = RayConfig(
        address=address,
        max_actors=max_actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=gpus_per_actor,
        decode=decode,
        idle_timeout_seconds=give_up_after,
    )
    options = _options(storage_option)
    request = TokenizeRequest(
        source_url=src,
        out_url=out,
        tokenizer_url=tokenizer,
        fit=FitConfig(size=size, patch=patch, levels=levels, codes=codes, beam=beam, sample=sample, seed=seed),
        source=SourceConfig(
            all_files=all_files,
            image_column=image_column,
            id_column=id_column,
            label=label,
            meta=tuple(meta or ()),
            tars_per_shard=tars_per_shard,
            storage_options=options,
        ),
        plan=PlanConfig(shard_rows=shard_rows, codec=codec, views=views),
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
    outcome = Conversion(request, TerminalReporter(quiet=quiet), _runner(runner, request.run, cluster)).run()
    _finish(out, options, outcome, as_json, quiet)


def _runner(name: str, run: Any, cluster: Any) -> Any:
    """Return the runner of that name; only here does a command load Ray."""
    from pipeline.errors import ConfigError

    if name == "ray":
        from pipeline.runners.ray_jobs import RayRunner

        return RayRunner(run, cluster)
    if name != "local":
        raise ConfigError(f"--runner is {name!r}; expected local or ray")
    from pipeline.runners.local import LocalRunner

    return LocalRunner(run)


def _finish(out: str, options: dict[str, Any], outcome: Any, as_json: bool, quiet: bool) -> None:
    from pipeline.reports.storage import dataset_report
    from pipeline.reports.terminal import print_table
    from pipeline.storage import Store

    store = Store(out, storage_options=options)
    rate = None if outcome.already_complete or not outcome.images else outcome.images / max(1e-9, outcome.seconds)
    report = dataset_report(store, rate)
    usage = outcome.usage.rows() if outcome.usage is not None else []
    if as_json:
        busy = {} if outcome.usage is None else {stage: round(share, 4) for stage, share in outcome.usage.busy_shares().items()}
        _print_json({**report.to_json(), "busy": busy})
    elif not quiet:
        print_table([*report.rows(), *usage], title=f"{store.url}: {'already complete' if outcome.already_complete else 'complete'}")


@app.command(
    "submit",
    cls=_SubmitCommand,
    epilog="Example: tokenshards submit s3://bucket/photos s3://bucket/tokens --address http://head:8265 --tail",
)
def submit_command(
    ctx: typer.Context,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the Ray cluster.", rich_help_panel="Submission")
    ] = "http://127.0.0.1:8265",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Stay until the job ends.", rich_help_panel="Submission")] = True,
    tail: Annotated[bool, typer.Option("--tail", help="Show the log of the job while waiting.", rich_help_panel="Submission")] = False,
    submission_id: Annotated[
        str | None, typer.Option(help="Name of the job, never used before.", show_default="made of OUT", rich_help_panel="Submission")
    ] = None,
    local_paths: Annotated[
        bool, typer.Option("--local-paths", help="Paths without :// are on a disk that all nodes mount.", rich_help_panel="Submission")
    ] = False,
    forward_credentials: Annotated[
        bool,
        typer.Option("--forward-credentials", help="Send your AWS credentials; Ray shows them.", rich_help_panel="Submission"),
    ] = False,
    install_dependencies: Annotated[
        bool, typer.Option("--install-dependencies", help="Install on the nodes what they lack.", rich_help_panel="Submission")
    ] = False,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Run `tokenize` as a job of a Ray cluster. Takes the options of `tokenize` too. Submit again to continue."""
    from pipeline.job_watch import watch_job
    from pipeline.ray_dashboard import Dashboard
    from pipeline.reports.terminal import TerminalReporter
    from pipeline.submission import Submission, check_values, submit

    values, arguments = ctx.obj
    check_values(values)
    submission = Submission(
        source_url=values["src"],
        out_url=values["out"],
        arguments=(*arguments, *(["--quiet"] if quiet else [])),
        storage_options=_options(values["storage_option"]),
        tokenizer_url=values["tokenizer"],
        submission_id=submission_id,
        local_paths=local_paths,
        forward_credentials=forward_credentials,
        install_dependencies=install_dependencies,
    )
    reporter = TerminalReporter(quiet=quiet)
    dashboard = Dashboard(address)
    job = submit(submission, dashboard, reporter)
    about = f"--address {dashboard.address} {job.submission_id}"
    report: dict[str, Any] = {"submission_id": job.submission_id, "address": dashboard.address}
    if not wait:
        reporter.say(f"submitted; watch it with `ray job logs --follow {about}`, stop it with `ray job stop {about}`")
        print(json.dumps(report) if as_json else job.submission_id)
        return
    reporter.say(f"submitted job {job.submission_id}; Ctrl-C leaves it running")

    def write_log(text: str) -> None:
        print(text, end="", flush=True, file=sys.stderr if as_json else sys.stdout)

    try:
        end = watch_job(job, reporter, write_log=write_log if tail else reporter.retell)
    except KeyboardInterrupt:
        reporter.end()
        print(
            f"\nno longer waiting; the job goes on. Watch it with `ray job logs --follow {about}`, stop it with `ray job stop {about}`",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    finally:
        reporter.end()
    if as_json:
        _print_json({**report, "status": end.status, "exit_code": end.exit_code, "seconds": end.seconds})
    if end.exit_code and not tail and end.log_end:
        print(f"the job ended with exit code {end.exit_code}; its log ends with:\n{end.log_end}", file=sys.stderr)
    if end.exit_code:
        raise typer.Exit(end.exit_code)


@app.command("plan", epilog="Example: tokenshards plan s3://bucket/photos s3://bucket/tokens --price-per-hour 1.20 --workers 32")
def plan_command(
    src: Source,
    out: Out,
    tokenizer: TokenizerOption = None,
    shard_rows: ShardRows = None,
    codec: Codec = "default",
    views: Views = "one",
    workers: Workers = None,
    price_per_hour: Annotated[float | None, typer.Option(help="Price of the machine per hour, in your currency.")] = None,
    size: Size = None,
    patch: Patch = 4,
    levels: Levels = 2,
    codes: Codes = 256,
    beam: Beam = 1,
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
        PlanConfig(shard_rows=shard_rows, codec=codec, views=views),
        FitConfig(size=size, patch=patch, levels=levels, codes=codes, beam=beam, seed=seed),
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
    re_encode: Annotated[int | None, typer.Option(metavar="N", help="Make N rows again from their source, and compare the ids.")] = None,
    source: Annotated[str | None, typer.Option(help="Where the source is now, if it moved; for --re-encode.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed that draws the N rows.", show_default="a new one, which is printed")] = None,
    min_agreement: Annotated[float, typer.Option(help="Share of the ids of the N rows that must agree.")] = 0.99,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every object, checksum and count. Exit code 1 and the object named on any damage."""
    _one_blas_thread()
    _prepare_for_torch()
    import random
    from dataclasses import asdict

    from pipeline.errors import ConfigError
    from pipeline.reencoding import ReencodingConfig, reencode_sample
    from pipeline.reports.terminal import TerminalReporter, print_table
    from pipeline.storage import Store
    from pipeline.verification import verify_dataset

    options = _options(storage_option)
    again = None
    if re_encode is not None:
        drawn_by = random.randrange(1 << 31) if seed is None else seed
        again = ReencodingConfig(rows=re_encode, seed=drawn_by, min_agreement=min_agreement, source_url=source)
    elif source is not None or seed is not None:
        raise ConfigError("--source or --seed was given without --re-encode; expected --re-encode N, which they belong to")
    store = Store(out, storage_options=options)
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
    compared = None
    if again is not None and found.ok:  # of a damaged dataset nothing can be said before it is mended
        compared = reencode_sample(store, found.state, again, options)
    ok = found.ok and (compared is None or compared.ok)
    if as_json:
        problems = [asdict(problem) for problem in found.problems]
        counts = {"shards_checked": found.shards_checked, "rows_checked": found.rows_checked, "complete": found.complete}
        _print_json({"ok": ok, **counts, "problems": problems, **({} if compared is None else {"re_encoded": compared.to_json()})})
    else:
        checked = f"{found.shards_checked:,} shards and {found.rows_checked:,} rows checked"
        print(f"{store.url}: {'ok' if found.ok else f'{len(found.problems)} problems'}, {checked}")
        print_table([(problem.object, problem.kind, problem.detail) for problem in found.problems])
        if found.problems:
            print(f"See what can be mended with: tokenshards repair {store.url}")
            if again is not None:
                print("No row was encoded again: mend or finish the dataset first")
        for line in [] if compared is None else compared.lines():
            print(line)
    if not ok:
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
    runner: RunnerName = "local",
    address: Address = None,
    max_actors: MaxActors = None,
    cpus_per_actor: CpusPerActor = 1,
    gpus_per_actor: GpusPerActor = 0.0,
    storage_option: StorageOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Try the quarantined inputs again as a new generation; older shards stay as they are."""
    from pipeline.config import RayConfig, RunConfig
    from pipeline.conversion import retry_failed
    from pipeline.reports.terminal import TerminalReporter
    from pipeline.storage import Store

    options = _options(storage_option)
    run = RunConfig(workers=_workers(workers), max_bad=1.0)
    cluster = RayConfig(address=address, max_actors=max_actors, cpus_per_actor=cpus_per_actor, gpus_per_actor=gpus_per_actor)
    outcome = retry_failed(out, source, run, options, TerminalReporter(quiet=quiet), _runner(runner, run, cluster))
    if outcome is None:
        print(json.dumps({"retried": 0}) if as_json else f"{Store(out, storage_options=options).url}: nothing is in quarantine")
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
    n: Annotated[int | None, typer.Option("-n", help="Images to show.", show_default="16; 6 with --augment")] = None,
    sample_id: Annotated[list[str] | None, typer.Option("--id", help="Show this sample id; may be repeated.")] = None,
    label: Annotated[str | None, typer.Option("--class", help="Show images of this class only.")] = None,
    source: Annotated[str | None, typer.Option(help="Show the originals beside; the place that was tokenized.")] = None,
    augment: Annotated[bool, typer.Option("--augment", help="Show what each augmentation of `train` does, one column each.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the augmentations.")] = 8,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """A picture of what the tokens hold: reconstructions, beside the originals (--source) or their augmentations (--augment)."""
    from pipeline.errors import ConfigError
    from pipeline.reports.previews import preview_dataset, preview_views

    options, sample_ids = _options(storage_option), tuple(sample_id or ())
    if augment and source is not None:
        raise ConfigError("--augment and --source were both given; expected one of them: augmentations or originals beside the tokens")
    if augment:
        from stem_adaptors.augment.views import augmented_views

        views = functools.partial(augmented_views, seed=seed)
        shown = preview_views(out, to, views, count=6 if n is None else n, sample_ids=sample_ids, label=label, options=options)
    else:
        count = 16 if n is None else n
        shown = preview_dataset(out, to, count=count, sample_ids=sample_ids, label=label, source_url=source, options=options)
    if as_json:
        _print_json(shown.to_json())
    else:
        print(shown.text())


Device = Annotated[str, typer.Option(help="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.")]
Weights = Annotated[str, typer.Option(help="`best` on the validation set, or `last`.")]
TopClasses = Annotated[int, typer.Option(help="Classes to print of each image.")]


@app.command("train", epilog="Example: tokenshards train photos_train --val photos_val --out run")
def train_command(
    data: Annotated[str, typer.Argument(help="Dataset of tokens to learn from, local or any fsspec URL.")],
    out: Annotated[str, typer.Option(help="Run directory, local or any fsspec URL.")],
    val: Annotated[str | None, typer.Option(help="Dataset to measure on after each epoch.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over DATA.", show_default="by its size")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="vit_nano, vit_micro, vit_tiny, vit_small, vit_base, or timm:NAME.", show_default="by the size of DATA"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, all processes together.", show_default="by the size of DATA")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="by the batch size")] = None,
    augment: Annotated[bool, typer.Option("--augment/--no-augment", help="Token-space augmentations that the layout allows.")] = True,
    device: Annotated[str | None, typer.Option(help="`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.", show_default="auto")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, order and augmentations.", show_default="0")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, exactly; start it where there is none.")] = False,
    order: Annotated[
        str | None,
        typer.Option(help="`global`: a true shuffle of a decoded copy; `windowed`: bounded disk at any size.", show_default="global"),
    ] = None,
    cache_dir: Annotated[
        str | None, typer.Option(help="Folder of decoded copies. Default: $TOKENSHARDS_CACHE or the user's cache.")
    ] = None,
    cache_gb: Annotated[float | None, typer.Option(help="Most gigabytes that decoded copies may take.", show_default="64")] = None,
    fraction: Annotated[float, typer.Option(help="Learn from this share of each class only.")] = 1.0,
    mix: Annotated[list[str] | None, typer.Option(help="URL=WEIGHT of a further dataset, DATA has weight 1; may be repeated.")] = None,
    pretrained: Annotated[
        str | None, typer.Option(help="Start from the ViT weights in this file (.safetensors, .pt) or run directory.")
    ] = None,
    train_part: Annotated[str | None, typer.Option(help="`all`, `head` (linear probe) or `attention`.", show_default="all")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of averaged weights, evaluated too; 0 for none.", show_default="0")] = None,
    precision: Annotated[str | None, typer.Option(help="`auto`, `fp32`, `bf16` or `fp16`.", show_default="auto")] = None,
    recipe: Annotated[str | None, typer.Option(metavar="FILE.py", help="Settings from a recipe, such as those in infra/recipes/.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting: PART.FIELD=VALUE of model, augment, loader or train; may be repeated."),
    ] = None,
    ray_workers: Annotated[
        str | None, typer.Option(help="Train on so many workers of a Ray cluster; 2-8 goes on with fewer while nodes are missing.")
    ] = None,
    gpus_per_worker: Annotated[
        int | None, typer.Option(help="GPUs of each Ray worker.", show_default="1 where the cluster has GPUs, else 0")
    ] = None,
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs of each Ray worker.")] = 1.0,
    address: Annotated[str, typer.Option(help="Ray cluster: `auto`, or HOST:PORT of its head.")] = "auto",
    ray_wait: Annotated[float, typer.Option(help="Seconds that the cluster may take to find a place for the workers.")] = 60.0,
    storage_option: StorageOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a classifier from token shards alone. Under torchrun it uses every process; --resume continues bit for bit."""
    _prepare_for_torch()
    from pipeline.storage import display_url
    from stem_adaptors.augment import allowed_augmentations
    from stem_adaptors.config import AugmentConfig, with_settings
    from stem_adaptors.defaults import default_configs, read_recipe, training_data, with_given
    from stem_adaptors.distributed import joined_ranks
    from stem_adaptors.progress import TrainingReporter
    from stem_adaptors.training_job import TrainingJob

    options = _options(storage_option)
    chosen = training_data(data, fraction=fraction, seed=seed or 0, mix_with=tuple(mix or ()), storage_options=options)
    given: dict[str, dict[str, Any]] = {
        "model": {"name": model},
        "loader": {"batch_size": batch_size, "seed": seed, "order": order, "cache_dir": cache_dir, "cache_gb": cache_gb},
        "train": {
            "epochs": epochs,
            "lr": lr,
            "seed": seed,
            "device": device,
            "train_part": train_part,
            "ema_decay": ema,
            "precision": precision,
        },
    }
    recipe_configs = {} if recipe is None else read_recipe(recipe)
    configs = with_given({**default_configs(chosen), **recipe_configs}, given)
    if not augment:
        configs["augment"] = allowed_augmentations(chosen.spec, AugmentConfig.off())
    configs = with_settings(configs, settings or ())
    if val is None and not quiet:
        print("no --val given: nothing is measured, and the last weights count as the best", file=sys.stderr)
    reporter = TrainingReporter(quiet=quiet)
    job = TrainingJob(
        data_url=data,
        val_url=val,
        out_url=out,
        **configs,
        fraction=fraction,
        fraction_seed=seed or 0,
        mix=tuple(mix or ()),
        pretrained=pretrained,
        storage_options=options,
    )
    try:
        if ray_workers is not None:
            from pipeline.errors import ConfigError
            from stem_adaptors.cluster_config import ClusterConfig, parse_workers

            try:
                from stem_adaptors.ray_train import train_on_cluster
            except ImportError as error:
                raise ConfigError(
                    f"--ray-workers needs Ray ({error}); pip install 'tokenshards[train,ray]', here and on the nodes"
                ) from None
            cluster = ClusterConfig(
                workers=parse_workers(ray_workers),
                gpus_per_worker=gpus_per_worker,
                cpus_per_worker=cpus_per_worker,
                address=address,
                wait_seconds=ray_wait,
            )
            result = train_on_cluster(job, cluster, reporter, resume=resume)
        else:
            with joined_ranks(configs["train"].device) as (ranks, place):
                result = job.run(chosen, ranks, place, reporter, resume=resume)
            if not ranks.is_main:
                return
    finally:
        reporter.end()
    where = display_url(out)
    if as_json:
        _print_json({"run": where, "best_top1": result.best_top1, "best_epoch": result.best_epoch, **result.record})
    elif result.best_top1 is not None:
        best = f"best top-1 {result.best_top1:.1%} after epoch {(result.best_epoch or 0) + 1}"
        print(f"{where}: {best}. Look at {where}/curves.png")
    else:
        print(f"{where}: trained. Measure it with: tokenshards evaluate {where} DATA")


@app.command("evaluate", epilog="Example: tokenshards evaluate run photos_val --confusion confusion.png")
def evaluate_command(
    run: Annotated[str, typer.Argument(help="Run directory made by `train`.")],
    data: Annotated[str | None, typer.Argument(help="Dataset of tokens with labels.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Measure on pictures instead: a folder with a sub-folder per class, tars or tables.")
    ] = None,
    confusion: Annotated[str | None, typer.Option(metavar="FILE.png", help="Draw the confusion matrix.")] = None,
    weights: Weights = "best",
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    device: Device = "auto",
    label: LabelName = None,
    workers: Workers = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Top-1, top-5 and per-class accuracy of a run, from token shards or from pictures that are tokenized for it."""
    _prepare_for_torch()
    import tempfile
    from pathlib import Path

    from pipeline.errors import ConfigError
    from pipeline.reports.terminal import print_table
    from pipeline.shards import open_dataset
    from pipeline.storage import Store
    from stem_adaptors.distributed import choose_device
    from stem_adaptors.evaluation_report import evaluate_run

    options = _options(storage_option)
    if (data is None) == (images is None):
        raise ConfigError("evaluate takes either a DATA argument or --images DIR; expected exactly one of them")
    store = Store(run, storage_options=options)
    place = choose_device(device)
    if data is not None:
        report = evaluate_run(store, open_dataset(data, storage_options=options), weights=weights, device=place, batch_size=batch_size)
    else:
        with tempfile.TemporaryDirectory(prefix="tokenshards-evaluate-") as folder:
            _tokenize_for(run, str(images), folder, label, _workers(workers), options)
            report = evaluate_run(store, open_dataset(folder), weights=weights, device=place, batch_size=batch_size)
    if confusion is not None:
        target = Path(confusion).resolve()
        Store(str(target.parent)).write(target.name, report.confusion_png())
    if as_json:
        _print_json(report.to_json())
        return
    for title, rows in report.tables():
        print_table(rows, title=title)
    if confusion is not None:
        print(f"confusion matrix drawn in {confusion}")


def _tokenize_for(run: str, images: str, folder: str, label: str | None, workers: int, options: dict[str, Any]) -> None:
    """Tokenize pictures into a temporary dataset with the tokenizer of a run: exactly the path that made its training set."""
    from pipeline.config import RunConfig, SourceConfig
    from pipeline.conversion import Conversion
    from pipeline.reports.terminal import TerminalReporter
    from pipeline.request import TokenizeRequest

    request = TokenizeRequest(
        source_url=images,
        out_url=folder,
        tokenizer_url=f"{run.rstrip('/')}/tokenizer",
        source=SourceConfig(label=label, storage_options=options),
        run=RunConfig(workers=workers, max_bad=1.0),
        out_options=options,
    )
    reporter = TerminalReporter()
    outcome = Conversion(request, reporter).run()
    if outcome.manifest.totals["images_quarantined"]:
        reporter.say(f"{outcome.manifest.totals['images_quarantined']} pictures cannot be read and are left out")


@app.command("predict", epilog="Example: tokenshards predict run cat.jpg photos/")
def predict_command(
    run: Annotated[str, typer.Argument(help="Run directory made by `train`.")],
    images: Annotated[list[str], typer.Argument(help="Pictures, or folders of pictures; local or any fsspec URL.")],
    top: TopClasses = 1,
    weights: Weights = "best",
    device: Device = "auto",
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the class of each picture with its probability, one line each; exit code 1 if one cannot be read."""
    _prepare_for_torch()
    from pipeline.errors import ConfigError
    from pipeline.image_tokens import tokenize_images
    from pipeline.storage import Store
    from pipeline.tokenizers.directory import load_tokenizer
    from stem_adaptors.distributed import choose_device
    from stem_adaptors.evaluate import predict
    from stem_adaptors.run_directory import open_classifier

    if top < 1:
        raise ConfigError(f"--top is {top}; expected at least 1")
    options = _options(storage_option)
    store = Store(run, storage_options=options)
    place = choose_device(device)
    model, found = open_classifier(store, weights, place)
    tokenizer = load_tokenizer(store, "tokenizer")
    failures = 0
    for encoded in tokenize_images(images, tokenizer, storage_options=options):
        probabilities_BC = () if encoded.tokens is None else predict(model, encoded.tokens, place)
        for name, row in zip(encoded.names, probabilities_BC, strict=True):
            best = [(found.classes[index], float(row[index])) for index in (-row).argsort()[:top]]
            if as_json:
                _print_json({"image": name, "classes": [{"class": label, "probability": share} for label, share in best]})
            else:
                print(f"{name}  " + "  ".join(f"{label} {share:.1%}" for label, share in best))
        for name, reason in encoded.failed:
            print(f"error: {name}: {reason}", file=sys.stderr)
        failures += len(encoded.failed)
    if failures:
        raise typer.Exit(1)


@app.command("demo", epilog="Example: tokenshards demo demo_out")
def demo_command(
    folder: Annotated[str, typer.Argument(help="Folder for the demo's images, datasets and pictures.")] = "demo_out",
) -> None:
    """The whole job on real images that need no download: digits become tokens and then a classifier; tiles of photographs."""
    _prepare_for_torch()
    from pipeline.demo import run_demo
    from stem_adaptors.demo import train_demo
    from stem_adaptors.progress import TrainingReporter

    run_demo(folder)
    train_demo(folder, TrainingReporter())


import_app = typer.Typer(
    help="Take over what another project made: tokens as a dataset, a checkpoint as a tokenizer.", no_args_is_help=True
)
export_app = typer.Typer(help="Write a dataset in another project's layout.", no_args_is_help=True)
app.add_typer(import_app, name="import")
app.add_typer(export_app, name="export")
Split = Annotated[str, typer.Option(help="Name of the split: its files are SPLIT-token.data.bin.gz, SPLIT-token.index.npy.gz, …")]


@import_app.command("seit", epilog="Example: tokenshards import seit seit_release/ imagenet.tokens --split train --classes names.txt")
def import_seit_command(
    src: Annotated[str, typer.Argument(help="Folder of a SeiT release, local or any fsspec URL.")],
    out: Out,
    split: Split = "train",
    grid: Annotated[str, typer.Option(help="Rows x columns of the sites of an image.")] = "32x32",
    codebook: Annotated[str | None, typer.Option(help="Codebook file (.safetensors, .npy, .ckpt). Default: found beside.")] = None,
    labels: Annotated[str | None, typer.Option(help="Label file. Default: found beside.")] = None,
    synonyms: Annotated[str | None, typer.Option(help="Synonym table (.json). Default: found beside.")] = None,
    classes: Annotated[str | None, typer.Option(help="Text file with the name of each class, one a line.")] = None,
    codec: Codec = "default",
    shard_rows: ShardRows = None,
    max_bad: MaxBad = 0.01,
    storage_option: StorageOptions = None,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """A split in SeiT's release layout becomes a dataset; everything is checked before anything is written. Again = continue."""
    from pipeline.config import PlanConfig
    from pipeline.interop.seit_import import SeitImportRequest, import_seit, parse_grid
    from pipeline.reports.terminal import TerminalReporter

    options = _options(storage_option)
    request = SeitImportRequest(
        source_url=src,
        out_url=out,
        split=split,
        grid=parse_grid(grid),
        codebook=codebook,
        labels=labels,
        synonyms=synonyms,
        classes=classes,
        plan=PlanConfig(shard_rows=shard_rows, codec=codec),
        max_bad=max_bad,
        options=options,
    )
    outcome = import_seit(request, TerminalReporter(quiet=quiet))
    _finish(out, options, outcome, as_json, quiet)


@import_app.command(
    "tokenizer", epilog="Example: tokenshards import tokenizer imagenet_vitvq_base.ckpt vit.tok --kind vit-vqgan --keep-codes photos/"
)
def import_tokenizer_command(
    weights: Annotated[str, typer.Argument(help="Published checkpoint, local or any fsspec URL (hf:// too): safetensors or torch.")],
    kind: Annotated[str, typer.Option(help="What the checkpoint is; the README lists them. `python:module:callable` needs no CHECKPOINT.")],
    out: Annotated[
        str | None, typer.Argument(metavar="OUT.tok", help="Directory for tokenizer.json, codebook and weights.", show_default=False)
    ] = None,
    keep_codes: Annotated[str | None, typer.Option(metavar="SRC", help="Keep only the codes that these images use.")] = None,
    min_uses: Annotated[int, typer.Option(help="Uses in --keep-codes SRC that let a code stay.")] = 1,
    sample: Annotated[int, typer.Option(help="Images of --keep-codes SRC to count on, at most.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of that sample.")] = 0,
    decoder: Annotated[bool, typer.Option(help="Keep the way back to pixels, about half of the weights.")] = True,
    dtype: Annotated[
        str, typer.Option(help="What the networks run in: `float32`, or `bfloat16` for a GPU. Part of the identity.")
    ] = "float32",
    resize: Annotated[str | None, typer.Option(help="`squash` or `crop`.", show_default="as its own project does")] = None,
    resample: Annotated[str | None, typer.Option("--filter", help="`bicubic`, `bilinear`, …", show_default="likewise")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the square image, for networks that take any.", show_default="256")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Whose conv-vqgan: `taming`, `llamagen`, `ibq`, `amused`; whose torchscript: `cosmos-di`.")
    ] = None,
    decoder_file: Annotated[str | None, typer.Option(help="Decoder of --kind torchscript, a file of its own.")] = None,
    vocabulary: Annotated[str | None, typer.Option(metavar="K[,K…]", help="Ids of each level of --kind torchscript.")] = None,
    colour_range: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="What 0 and 255 become, likewise.")] = None,
    ema: Annotated[bool, typer.Option(help="Take the moving averages of the parameters, where the checkpoint has any.")] = True,
    max_tokens: Annotated[
        int | None, typer.Option(help="First ids of a picture to keep, for ordered sequences.", show_default="all")
    ] = None,
    config_option: Annotated[list[str] | None, typer.Option("--config", metavar="KEY=VALUE", help="For the callable of `python:`.")] = None,
    all_files: AllFiles = False,
    image_column: ImageColumn = None,
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """The checkpoint of a published tokenizer becomes a tokenizer directory for `tokenize --tokenizer`; every key is checked."""
    _prepare_for_torch()
    from pipeline.config import ImportConfig, SourceConfig
    from pipeline.published import CodeSample, keep_used_codes, open_published, tokenizer_rows
    from pipeline.reports.storage import fit_rows
    from pipeline.reports.terminal import print_table
    from pipeline.storage import Store
    from pipeline.tokenizers.base import describe_tokenizer
    from pipeline.tokenizers.directory import save_tokenizer

    options = _options(storage_option)
    if out is None:
        weights, out = "", weights
    config = ImportConfig(
        resize=resize,  # type: ignore[arg-type]  # it checks them
        filter=resample,  # type: ignore[arg-type]
        dtype=dtype,
        decoder=decoder,
        size=size,
        preset=preset,
        ema=ema,
        max_tokens=max_tokens,
        decoder_file=decoder_file,
        vocabulary=_numbers("--vocabulary", vocabulary, int),
        colour_range=_numbers("--colour-range", colour_range, float),
        settings=_options(config_option, "--config", "cell=8"),
    )
    tokenizer, statistics = open_published(kind, weights, config, options), dict[str, Any]()
    if keep_codes is not None:
        pictures = SourceConfig(all_files=all_files, image_column=image_column, storage_options=options)
        counted = CodeSample(source_url=keep_codes, source=pictures, images=sample, seed=seed, min_uses=min_uses)
        tokenizer, statistics = keep_used_codes(tokenizer, counted)
    store = Store(out, storage_options=options)
    save_tokenizer(tokenizer, store, "", statistics)
    if as_json:
        _print_json({"fingerprint": tokenizer.spec.fingerprint, "spec": tokenizer.spec.to_json(), **statistics})
        return
    print_table([*tokenizer_rows(tokenizer), *fit_rows(statistics)], title=f"{store.url}: {describe_tokenizer(tokenizer)}")


@export_app.command("seit", epilog="Example: tokenshards export seit photos.tokens seit_release/ --split train")
def export_seit_command(
    data: Annotated[str, typer.Argument(help="Dataset with one level of at most 510 codes on one grid, local or any fsspec URL.")],
    out: Annotated[str, typer.Argument(help="Folder for the files, local or any fsspec URL.")],
    split: Split = "train",
    storage_option: StorageOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a dataset as a split of SeiT's release layout: tokens, index, labels, codebook, synonyms and class names."""
    from pipeline.interop.seit_export import export_seit
    from pipeline.reports.terminal import print_table

    written = export_seit(data, out, split=split, options=_options(storage_option))
    if as_json:
        _print_json(written.to_json())
    else:
        print_table(written.rows(), title=written.url)


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
        if isinstance(error, ModuleNotFoundError) and error.name in ("ray", "torch", "filelock"):
            extra = "ray" if error.name == "ray" else "train"
            print(f"error: this command needs {error.name}, which is not installed; pip install 'tokenshards[{extra}]'", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, TokenshardsError):
            print(f"error: {error}" + (f"\n{error.hint}" if error.hint else ""), file=sys.stderr)
            sys.exit(error.exit_code)
        print(
            f"error: unexpected {type(error).__name__}: {error}. "
            "This is a bug in tokenshards; run again with TOKENSHARDS_TRACEBACK=1 to see where",
            file=sys.stderr,
        )
        sys.exit(70)


def run() -> None:
    """Run the command line as a process of its own, and end it."""
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    # Threads of Ray and of torch's process groups now and then crash an interpreter that ends in order, when all work is done; torchrun
    # takes that for a failure and stops the other ranks.
    if "ray" in sys.modules or "WORLD_SIZE" in os.environ:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(int(code or 0))
    sys.exit(code)


if __name__ == "__main__":
    run()
