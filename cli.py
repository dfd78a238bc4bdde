"""The command line of tokenshards. It assembles the command modules and maps errors to exit codes."""

from __future__ import annotations

if __name__ == "__main__":  # run the package's module, so that no class exists twice
    from importlib import import_module

    import_module("tokenshards.cli").run()

import contextlib
import io
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tokenshards.pipeline.commands import import_tokenizer, interop, look, maintain, publish, submit, tokenize, tokenizers
from tokenshards.pipeline.commands.options import refused_value
from tokenshards.stem_adaptors.commands import (
    compare,
    continual,
    curve,
    demo,
    evaluate,
    export_classifier,
    fit_tokenadapt,
    import_classifier,
    import_tokenadapt,
    predict,
    pretrain,
    preview,
    train,
)

__all__ = ["app", "main", "run"]


class _Stopped(Exception):
    """Ctrl-C, as an exception that click does not swallow."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Stopped from None
        except typer.BadParameter as error:
            raise refused_value(error) from error.__cause__


app = typer.Typer(
    cls=_Commands,
    help="Turn image buckets into verified, compressed shards of discrete tokens, and train classifiers from them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `tokenshards demo`, or `tokenshards tokenize IMAGES OUT`.",
)

for _module in (
    tokenizers, tokenize, submit, look, maintain, preview, fit_tokenadapt, pretrain, train, evaluate, predict, compare, curve, continual,
    demo, publish,
):  # fmt: skip
    app.add_typer(_module.app)
for _module in (import_tokenizer, import_classifier, import_tokenadapt):
    interop.import_app.add_typer(_module.app)
interop.export_app.add_typer(export_classifier.app)
app.add_typer(interop.import_app, name="import")
app.add_typer(interop.export_app, name="export")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        from tokenshards import __version__

        print(f"tokenshards {__version__}")
        raise typer.Exit


def _terminate(signal_number: int, _frame: object) -> None:
    raise SystemExit(128 + signal_number)  # an exception lets workers, temporary files and the heartbeat end in order


def _nobody_reads() -> bool:
    """Return whether stdout or stderr is a pipe whose reader is gone. A broken pipe to a worker or a server is an ordinary error."""
    import select

    if not hasattr(select, "poll"):  # Windows
        return True
    gone = select.POLLERR | select.POLLHUP
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # the stream is closed or is no file
            poll.register(stream.fileno(), 0)
    return any(event & gone for _, event in poll.poll(0))


def main() -> None:
    """Run the command line; an expected error is one message and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a closed stream is None
            stream.reconfigure(errors="backslashreplace")  # a file name must not stop a job on a terminal that cannot show it
    try:
        app()
    except (KeyboardInterrupt, _Stopped):
        resume = " (a run of `train` or `pretrain` with --resume)" if {"train", "pretrain"} & set(sys.argv[1:2]) else ""
        print(f"\nstopped. Run the same command again: it continues where it stopped{resume}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():  # for example after `| head`; print nothing more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        from tokenshards.pipeline.errors import TokenshardsError, shorten
        from tokenshards.pipeline.optional_packages import install_hint, package_error

        if os.environ.get("TOKENSHARDS_TRACEBACK"):
            raise
        short = ("can't start new thread", "can't allocate memory")  # messages of Python's threads and of torch's allocator
        if isinstance(error, MemoryError) or any(words in str(error) for words in short):
            why = shorten(str(error).splitlines()[0] if str(error) else "MemoryError", 300)
            print(f"error: out of memory or threads ({why}); give the machine more memory, or use fewer --workers", file=sys.stderr)
            sys.exit(3)
        if isinstance(error, ModuleNotFoundError) and (package := (error.name or "").partition(".")[0]) in ("ray", "torch", "filelock"):
            error = package_error(f"this command needs {package}", error, install_hint("ray" if package == "ray" else "train"))
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
    """Run the command line as the main program and end the process."""
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    # Threads of Ray and of torch's process groups sometimes crash the interpreter during its normal shutdown, after all work is done.
    # torchrun counts such a crash as a failure and stops the other ranks. After Ctrl-C, threads may retry an unreachable store for minutes.
    if "ray" in sys.modules or "WORLD_SIZE" in os.environ or code in (130, 143):
        with contextlib.suppress(OSError, ValueError, KeyError):
            sys.stdout.flush()
            sys.stderr.flush()
            sys.modules["multiprocessing.util"]._run_finalizers(0)  # semaphores of a stopped pool, which Python calls leaked otherwise
        os._exit(int(code or 0))
    sys.exit(code)
