"""`submit`: run `tokenize` as a job of a Ray cluster."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tokenshards.pipeline.commands.options import JsonFlag, Quiet
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.tokenize_options import TokenizeOptions

__all__ = ["app"]

app = typer.Typer()


class _SubmitCommand(TyperCommand):
    """`submit` also takes the options of `tokenize`: it lists them in --help, parses and checks them, and passes them on to the job."""

    def _handed_on(self, ctx: Any) -> list[Any]:
        own = {param.name for param in self.params} | {"runner", "join"}  # the job sets these two itself
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
        ctx.obj = (TokenizeOptions(**values), arguments)
        return super().invoke(ctx)


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
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job ends.", rich_help_panel="Submission")] = True,
    tail: Annotated[bool, typer.Option("--tail", help="Show the log of the job while waiting.", rich_help_panel="Submission")] = False,
    submission_id: Annotated[
        str | None, typer.Option(help="Name of the job, never used before.", show_default="made from OUT", rich_help_panel="Submission")
    ] = None,
    local_paths: Annotated[
        bool, typer.Option("--local-paths", help="Paths without :// are on a disk that all nodes mount.", rich_help_panel="Submission")
    ] = False,
    forward_credentials: Annotated[
        bool,
        typer.Option("--forward-credentials", help="Send your AWS credentials; Ray shows them.", rich_help_panel="Submission"),
    ] = False,
    install_dependencies: Annotated[
        bool, typer.Option("--install-dependencies", help="Install missing packages on the nodes.", rich_help_panel="Submission")
    ] = False,
    quiet: Quiet = False,
    as_json: JsonFlag = False,
) -> None:
    """Run `tokenize` as a job of a Ray cluster. Takes the options of `tokenize` too. Submit again to continue."""
    from tokenshards.pipeline.config import RetryConfig
    from tokenshards.pipeline.reports.terminal import TerminalReporter
    from tokenshards.pipeline.storage.store import Store, display_url
    from tokenshards.pipeline.submit.job_watch import watch_job
    from tokenshards.pipeline.submit.ray_dashboard import Dashboard
    from tokenshards.pipeline.submit.submission import Submission, submit

    options: TokenizeOptions
    options, arguments = ctx.obj
    request = options.request()
    options.cluster()
    submission = Submission(
        source_url=options.src,
        out_url=options.out,
        arguments=(*arguments, *(["--quiet"] if quiet else [])),
        tokenizer_url=options.tokenizer,
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
        reporter.say(
            f"submitted; watch it with `tokenshards status {display_url(options.out)}` once its plan is made, or with "
            f"`ray job logs --follow {about}`; stop it with `ray job stop {about}`"
        )
        print(json.dumps(report) if as_json else job.submission_id)
        return
    reporter.say(f"submitted job {job.submission_id}; Ctrl-C leaves it running")

    def write_log(text: str) -> None:
        print(text, end="", flush=True, file=sys.stderr if as_json else sys.stdout)

    def open_out() -> Store:
        return Store(request.out_url, storage_options=request.out_options, retry=RetryConfig(attempts=2))

    try:
        end = watch_job(job, reporter, write_log=write_log if tail else None, open_out=None if tail else open_out)
    except KeyboardInterrupt:
        reporter.end()
        print(
            f"\nno longer waiting; the job continues. Watch it with `ray job logs --follow {about}`, stop it with `ray job stop {about}`",
            file=sys.stderr,
        )
        raise typer.Exit(130) from None
    finally:
        reporter.end()
    if as_json:
        print_json({**report, "status": end.status, "exit_code": end.exit_code, "seconds": end.seconds})
    elif end.report and not tail and not quiet:
        print(end.report)
    if end.exit_code and not tail and end.log_end:
        print(f"the job ended with exit code {end.exit_code}; its log ends with:\n{end.log_end}", file=sys.stderr)
    if end.exit_code:
        raise typer.Exit(end.exit_code)
