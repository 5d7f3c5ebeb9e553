#!/usr/bin/env bash
# Creates .venv with everything hybridflow needs on a CPU, at the versions of docker/requirements-cpu.lock.
#
#   docker/setup_cpu.sh                      a few minutes the first time, a fraction of a second when nothing changed
#   PYTHON=/path/to/python3.11 docker/setup_cpu.sh
#
# Packages come from wherever pip is told to look: its own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS,
# PIP_CACHE_DIR, ...) and pip.conf are respected. If your index serves a CUDA build of torch, set PIP_EXTRA_INDEX_URL to the
# CPU wheel index that PyTorch's "Get Started" page gives for "Compute Platform: CPU"; the same version is found there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly lock=docker/requirements-cpu.lock
readonly stamp=.venv/.hybridflow-setup           # written last: holds the fingerprint of the set-up that completed
readonly unfinished=.venv/.hybridflow-unfinished # present while packages are being installed

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# The folder is part of it: an editable install and the scripts of a venv hold absolute paths.
fingerprint() { { pwd -P; cat "$lock" docker/setup_cpu.sh pyproject.toml; } | sha256sum | cut -d' ' -f1; }

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        is_python_311 "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.11, which the locked wheels are built for"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3 python; do
        if is_python_311 "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 found (python3 is: $(python3 --version 2>&1 || true)). Install it, or name it: PYTHON=/path/to/python3.11 $0"
}

install() { .venv/bin/python -m pip --disable-pip-version-check --no-input install -qq --no-deps "$@"; }

# True when no line of the lock is missing from what is installed; more may be installed.
packages_match_lock() {
    local missing
    missing=$(comm -13 <(.venv/bin/python -m pip --disable-pip-version-check freeze --all 2>/dev/null | sed 's/^\(torch==[^+]*\)+.*/\1/' | sort) \
        <(grep '^[a-zA-Z]' "$lock" | sort))
    [[ -z "$missing" ]]
}

wanted=$(fingerprint)
if [[ -x .venv/bin/python && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    exit 0
fi

[[ "$(uname -s)-$(uname -m)" == Linux-x86_64 ]] || fail "the lock holds wheels for Linux x86-64; this is $(uname -s) $(uname -m), for which there is no lock yet"
started=$SECONDS

if [[ -e "$unfinished" ]] || ! is_python_311 .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
    say "1/4 creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
else
    say "1/4 keeping .venv, which exists"
fi

# Nothing to install: leave the packages alone, so that an interruption here never costs a working environment.
if packages_match_lock; then
    say "2/4, 3/4 every package is at its locked version"
else
    rm -f "$stamp"
    touch "$unfinished"

    # First and alone: what else asks for torch then finds it, and a wrong build is noticed before the rest is fetched.
    torch=$(grep '^torch==' "$lock")
    say "2/4 installing $torch (about 200 MB)"
    install "$torch"
    build=$(.venv/bin/python -c 'from importlib.util import find_spec as f; import runpy
print(runpy.run_path(f("torch").submodule_search_locations[0] + "/version.py")["cuda"] or "cpu")')
    [[ "$build" == cpu ]] ||
        fail "pip chose a build of $torch for CUDA $build. Set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (see the head of $0) and run this again"

    say "3/4 installing the other $(($(grep -c '^[a-zA-Z]' "$lock") - 1)) packages of $lock (1 to 3 minutes)"
    install -r "$lock"
    rm -f "$unfinished"
fi

say "4/4 installing hybridflow from this folder, editable"
install --no-build-isolation -e .

echo "$wanted" >"$stamp"
say "done in $((SECONDS - started)) s: .venv/bin/hybridflow --help"
