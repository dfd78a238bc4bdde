#!/usr/bin/env bash
# Everything that needs a GPU, in one command and at most 4 minutes: tests, a real-size tokenizer twice, training from tokens. Prints one
# JSON. With --cpu every step runs small on the CPU. The README beside this file says what the machine must have.
#
#   infra/bench/gpu_check.sh [--only environment|tests|encode|train] [--cpu] [--images DIR] [--wheels DIR] [--out DIR] [--seconds N]
set -euo pipefail
bench=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$bench/../.." && pwd)
python=${PYTHON:-python3}
wheels="" arguments=()
while (($#)); do
    case $1 in
        --wheels) wheels=${2:?"--wheels wants a folder of .whl files"}; shift 2 ;;
        --wheels=*) wheels=${1#*=}; shift ;;
        *) arguments+=("$1"); shift ;;
    esac
done
if [[ -n $wheels ]]; then
    shopt -s nullglob
    found=("$wheels"/*.whl)
    if ((${#found[@]} == 0)); then
        echo "gpu_check: $wheels holds no .whl file; expected wheels of what this Python lacks. Leave --wheels out where it lacks nothing" >&2
        exit 2
    fi
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    # --target: nothing of the machine's own environment is touched, and no package registry is asked.
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check --target "$site" "${found[@]}" >&2
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$bench/gpu_check/main.py" "${arguments[@]}"
