#!/usr/bin/env bash
# Checks of the GPU path on one bare GPU: Python 3.12, torch 2.11 or newer, transformers, triton; no SGLang, no Ray.
# One JSON line per check, at most 8 minutes, exit status 1 if one failed. Its figures belong in tests/bench/RESULTS.md.
#
#   tests/gpu/run.sh --wheels          what has to be carried to such a machine, name==version
#   tests/gpu/run.sh --fetch           gets it, where there is a package index, into tests/gpu/wheels (below 64 MiB)
#   tests/gpu/run.sh                   on the GPU machine, in a copy of this tree with tests/gpu/wheels
#   tests/gpu/run.sh --dry-run         the same code on a CPU with tiny sizes
#   tests/gpu/run.sh --only attention_backends train_step
#
# PYTHON chooses the interpreter; else it is .venv/bin/python where that is, or python3.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
wheels=$root/tests/gpu/wheels

python=${PYTHON:-python3}
if [[ -z "${PYTHON:-}" && -x "$root/.venv/bin/python" ]]; then python=$root/.venv/bin/python; fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONDONTWRITEBYTECODE=1 PYTHONWARNINGS=ignore TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 CUDA_DEVICE_MAX_CONNECTIONS=1

if [[ "${1:-}" == --wheels ]]; then
    exec "$python" -m tests.gpu.carried
fi
if [[ "${1:-}" == --fetch ]]; then
    rm -rf "$wheels"
    mapfile -t carried < <("$python" -m tests.gpu.carried)
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
        --dest "$wheels" "${carried[@]}"
    exec "$python" -m tests.gpu.carried "$wheels"
fi
if compgen -G "$wheels/*.whl" >/dev/null && [[ "$python" != "$root/.venv/bin/python" ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
    PYTHONPATH=$PYTHONPATH:$site
fi
"$python" -m tests.gpu.program "$@"
