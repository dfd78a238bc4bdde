"""One BLAS thread for the whole suite, as the workers have: two per process on busy cores make small products many times slower."""

import os
import signal

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts the suite with `&` makes all that it starts deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
