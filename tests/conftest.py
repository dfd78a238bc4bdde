"""One BLAS thread for the whole suite, as the workers have: two per process on busy cores make small products many times slower."""

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
