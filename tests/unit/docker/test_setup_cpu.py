"""docker/setup_cpu.sh in a folder of its own, offline, with small wheels made on the spot."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

DOCKER = Path(__file__).parents[3] / "docker"
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "hybridflow-0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        info = "hybridflow-0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: hybridflow\\nVersion: 0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\nRoot-Is-Purelib: true\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The scripts and a lock of torch, of `six` and of a uv that no index has."""
    folder = tmp_path / "project with a blank"
    (folder / "docker").mkdir(parents=True)
    for name in ("setup_cpu.sh", "lock.py", "uv_as_pip.py"):
        shutil.copy(DOCKER / name, folder / "docker")
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "hybridflow"\nversion = "0"\n'
    )
    make_wheel(folder / "wheels", "torch", "2.13.0+cpu", {"torch/version.py": "cuda = None\n"})
    six = make_wheel(folder / "wheels", "six", "1.17.0", {"six.py": ""})
    write_lock(folder, six)
    return folder


def make_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Writes a wheel and returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n",
    }
    record = ""
    for place, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        record += f"{place},sha256={digest},{len(content.encode())}\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for place, content in (files | {f"{info}/RECORD": record}).items():
            wheel.writestr(place, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_lock(folder: Path, six: str) -> None:
    (folder / "docker/requirements-cpu.lock").write_text(
        f"# head\nsix==1.17.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{six}\ntorch==2.13.0\n"
        f"uv==0.0.1 \\\n    --hash=sha256:{'1' * 64}\n"
    )


def set_up(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    of_pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "wheels", "PIP_NO_CACHE_DIR": "1"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "PYTHON"))}
    return subprocess.run(
        ["docker/setup_cpu.sh"],
        cwd=folder,
        env=clean | of_pip | {"PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
    )


def fake_command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_an_older_python_is_refused_with_the_commands_that_get_one(project: Path, tmp_path: Path) -> None:
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        fake_command(tmp_path, name, 'case "$1" in --version) echo Python 3.10.12;; *) exit 1;; esac')

    named = set_up(project, PYTHON=str(tmp_path / "python3"))
    found = set_up(project, PYTHON="", PATH=f"{tmp_path}:{os.environ['PATH']}")

    for done in (named, found):
        assert done.returncode == 1
        assert "Python 3.10.12" in done.stderr
        for command in ("conda create -y -n hybridflow python=3.12", "uv python install 3.12", "pyenv install -s 3.12"):
            assert command in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize("libc", ["echo glibc 2.31", "echo glibc 2.9", "exit 1", "echo musl 1.2.5"])
def test_an_older_c_library_is_refused(project: Path, tmp_path: Path, libc: str) -> None:
    fake_command(tmp_path, "getconf", libc)

    done = set_up(project, PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert done.returncode == 1
    assert "need glibc 2.34 or later" in done.stderr
    assert not (project / ".venv").exists()


@pytest.mark.full
def test_sets_up_once_and_refuses_a_wheel_that_is_not_the_locked_one(project: Path) -> None:
    first = set_up(project)
    assert first.returncode == 0, first.stderr
    assert "uv cannot be had here" in first.stdout
    installed = list((project / ".venv").glob("lib/*/site-packages/*.dist-info"))
    assert {path.name.partition("-")[0] for path in installed} >= {"six", "torch", "hybridflow"}

    again = set_up(project)
    assert (again.returncode, again.stdout) == (0, "")

    make_wheel(project / "wheels", "six", "1.17.0", {"six.py": "# changed on the way\n"})
    shutil.rmtree(project / ".venv")
    changed = set_up(project)
    assert changed.returncode != 0
    assert "DO NOT MATCH" in changed.stderr
    assert not (project / ".venv/.hybridflow-setup").exists()


@pytest.mark.full
def test_torch_is_checked_apart(project: Path) -> None:
    wrong = set_up(project, TORCH_SHA256="2" * 64)
    assert wrong.returncode != 0
    assert "DO NOT MATCH" in wrong.stderr

    make_wheel(project / "wheels", "torch", "2.13.0+cpu", {"torch/version.py": "cuda = '13.0'\n"})
    cuda = set_up(project)
    assert cuda.returncode == 1
    assert "for CUDA 13.0" in cuda.stderr

    lock = project / "docker/requirements-cpu.lock"
    lock.write_text(lock.read_text() + "new==1\n")
    unhashed = set_up(project)
    assert unhashed.returncode == 1
    assert "lines without hashes: new. Remedy: make lock" in unhashed.stderr
