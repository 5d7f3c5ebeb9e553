#!/usr/bin/env bash
# Creates .venv with everything hybridflow needs on a CPU, at the versions of docker/requirements-cpu.lock.
#
#   docker/setup_cpu.sh                      a minute or two the first time, a fraction of a second when nothing changed
#   PYTHON=/path/to/python3.12 docker/setup_cpu.sh
#   TORCH_SHA256=<of the wheel> docker/setup_cpu.sh         torch too is installed only if it is that file
#
# Packages come from wherever pip is told to look: its own variables (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS,
# PIP_CERT, ...) and pip.conf are respected, by uv too. If your index serves a CUDA build of torch, set PIP_EXTRA_INDEX_URL
# to the CPU wheel index that PyTorch's "Get Started" page gives for "Compute Platform: CPU"; the same version is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly lock=docker/requirements-cpu.lock
readonly stamp=.venv/.hybridflow-setup           # written last: holds the fingerprint of the set-up that completed
readonly unfinished=.venv/.hybridflow-unfinished # present while packages are being installed

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# The folder is part of it: an editable install and the scripts of a venv hold absolute paths.
fingerprint() { { pwd -P; cat "$lock" docker/setup_cpu.sh pyproject.toml; } | sha256sum | cut -d' ' -f1; }

# CPython with its lock: the free-threaded build takes other wheels.
is_supported() {
    "$1" -c 'import sys, sysconfig
sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13) and sys.implementation.name == "cpython"
              and not sysconfig.get_config_var("Py_GIL_DISABLED")))' 2>/dev/null
}

how_to_get_python() {
    cat <<'END'
One of these gets one, beside the Python that is there, and sets up with it:
    conda create -y -n hybridflow python=3.12 && conda activate hybridflow && make setup
    uv python install 3.12 && PYTHON="$(uv python find 3.12)" make setup
    pyenv install -s 3.12 && PYTHON="$(pyenv prefix 3.12)/bin/python" make setup
On Debian 12 and 13 and Ubuntu 24.04: apt-get install python3 python3-venv
END
}

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        is_supported "$PYTHON" ||
            fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | tail -n 1), but hybridflow needs CPython 3.11, 3.12 or 3.13.
$(how_to_get_python)"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python python3.11 python3.12 python3.13; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "hybridflow needs CPython 3.11, 3.12 or 3.13, and none is on the PATH (python3 is $(python3 --version 2>&1 | tail -n 1)).
$(how_to_get_python)"
}

# Wheels of the lock are built against glibc 2.34.
check_system() {
    local libc
    [[ "$(uname -s)-$(uname -m)" == Linux-x86_64 ]] ||
        fail "the lock holds wheels for Linux x86-64; this is $(uname -s) $(uname -m), for which there is no lock yet"
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)
    [[ "$(printf '%s\n' "glibc 2.34" "${libc:-none}" | sort -V | head -n 1)" == "glibc 2.34" && "$libc" == glibc* ]] ||
        fail "the locked wheels need glibc 2.34 or later; this system has ${libc:-another C library}. Remedy: Debian 12, Ubuntu 22.04, RHEL 9 or a later one, or a container of it"
}

pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }

# The line of one package with its hashes; all other lines.
lines_of() { awk -v pin="$1==" 'index($0, pin) == 1 { on = 1 } on; !/\\$/ { on = 0 }' "$lock"; }
lines_without() { awk -v pin="$1==" 'index($0, pin) == 1 { on = 1 } !on; !/\\$/ { on = 0 }' "${2:-$lock}"; }

# uv in .venv does in seconds what takes pip minutes; false where the index does not have it.
get_uv() {
    [[ "$(.venv/bin/uv --version 2>/dev/null | cut -d' ' -f2)" == "$(lines_of uv | sed -n 's/^uv==\([^ ]*\).*/\1/p')" ]] && return
    lines_of uv >.venv/uv.txt
    pip install -qq --no-deps --require-hashes --only-binary :all: -r .venv/uv.txt 2>.venv/uv.log
}

install() {
    if [[ "$installer" == uv ]]; then
        .venv/bin/python docker/uv_as_pip.py pip install --python .venv/bin/python --quiet --no-deps "$@"
    else
        pip install -qq --no-deps "$@"
    fi
}

install_torch() {
    local torch build
    torch=$(lines_of torch)
    [[ "$missing" == *"$torch"* ]] && say "2/4 installing $torch (about 200 MB)" || say "2/4 $torch is there"
    if [[ -n "${TORCH_SHA256:-}" ]]; then
        echo "$torch --hash=sha256:$TORCH_SHA256" >.venv/torch.txt
        install --require-hashes --only-binary :all: -r .venv/torch.txt
    else
        install --only-binary :all: "$torch"
    fi
    build=$(.venv/bin/python -c 'from importlib.util import find_spec as f; import runpy
print(runpy.run_path(f("torch").submodule_search_locations[0] + "/version.py")["cuda"] or "cpu")')
    [[ "$build" == cpu ]] ||
        fail "$installer chose a build of $torch for CUDA $build. Set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index (see the head of $0) and run this again"
}

wanted=$(fingerprint)
if [[ -x .venv/bin/python && "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]]; then
    exit 0
fi

check_system
started=$SECONDS
if [[ -e "$unfinished" ]] || ! is_supported .venv/bin/python || ! pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
    say "1/4 creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
else
    say "1/4 keeping .venv, which exists, with $(.venv/bin/python --version)"
fi

# Nothing to install: leave the packages alone, so that an interruption here never costs a working environment.
missing=$(.venv/bin/python docker/lock.py missing)
installer=uv
if [[ -z "$missing" || "$missing" == uv==* && "$missing" != *$'\n'* ]]; then
    say "2/4, 3/4 every package is at its locked version"
    [[ -z "$missing" ]] || installer=pip
else
    unhashed=$(.venv/bin/python docker/lock.py check)
    [[ -z "$unhashed" ]] || fail "$lock has lines without hashes: ${unhashed//$'\n'/, }. Remedy: make lock"
    rm -f "$stamp"
    touch "$unfinished"
    get_uv || installer=pip
    [[ "$installer" == uv ]] || say "uv cannot be had here, so pip installs, which takes minutes: $(tail -n 1 .venv/uv.log)"
    # pip compiles what it installs, uv only when told to: without byte code importing SGLang takes minutes.
    compile=()
    [[ "$installer" == uv ]] && compile=(--compile-bytecode)
    # First and alone: a wrong build is noticed before the rest is fetched.
    install_torch
    say "3/4 installing $(wc -l <<<"$missing") packages of $lock, and compiling them (about a minute)"
    lines_without torch | lines_without uv - >.venv/lock.txt
    install "${compile[@]}" --require-hashes --only-binary :all: -r .venv/lock.txt
    rm -f "$unfinished"
fi

say "4/4 installing hybridflow from this folder, editable"
install --no-build-isolation -e .

echo "$wanted" >"$stamp"
say "done in $((SECONDS - started)) s: .venv/bin/hybridflow --help"
