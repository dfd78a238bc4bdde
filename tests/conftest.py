"""One BLAS thread for the whole suite, as the workers have: two per process on busy cores make small products many times slower."""

import importlib.util
import os
import signal

import pytest

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

# Hundreds of tests start a process: where no bytecode is kept, each compiles all our modules, a third of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts the suite with `&` makes all that it starts deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Know the setting of pytest-timeout where it is not installed: `gpu_check.sh` runs tests on machines without it."""
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addini("timeout", "seconds of a test, for pytest-timeout, which is not here")
