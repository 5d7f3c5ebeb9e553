"""A folder for one user: its mode, its end, what a dead driver left, and names that are too long."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridflow.errors import ConfigError
from hybridflow.private_folder import PREFIX, PrivateFolder, write_secret


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    short = Path(tempfile.mkdtemp())
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    yield short
    shutil.rmtree(short)


def test_its_mode_does_not_depend_on_the_umask_and_nothing_is_left(parent: Path) -> None:
    before = os.umask(0)
    try:
        with PrivateFolder() as folder:
            write_secret(folder.path / "token", "x")
            assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
            assert stat.S_IMODE((folder.path / "token").stat().st_mode) == 0o600
            with pytest.raises(FileExistsError):
                write_secret(folder.path / "token", "y")
    finally:
        os.umask(before)
    assert list(parent.iterdir()) == []


def test_what_a_killed_driver_left_goes_and_what_lives_or_is_no_folder_stays(parent: Path) -> None:
    program = (
        "import os, signal, tempfile\n"
        f"tempfile.tempdir = {str(parent)!r}\n"
        "from hybridflow.private_folder import PrivateFolder\n"
        "folder = PrivateFolder()\n"
        "(folder.path / 'socket').touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (abandoned,) = parent.iterdir()
    link = parent / f"{PREFIX}lnklnkln"
    link.symlink_to("/tmp")
    with PrivateFolder() as living:
        for path in (abandoned, living.path):
            os.utime(path, (1, 1))
        with PrivateFolder() as other:
            assert {path.name for path in parent.iterdir()} == {living.path.name, other.path.name, link.name}


def test_a_long_temporary_folder_is_an_error_that_names_it_and_the_remedy(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/{'x' * 80}")
    with pytest.raises(ConfigError, match=r"TMPDIR is /tmp/x+: .*120 bytes, .*107\. Remedy: set TMPDIR to a shorter"):
        PrivateFolder()


def test_a_temporary_folder_that_is_not_there_is_an_error(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(parent / "no"))
    with pytest.raises(ConfigError, match=r"TMPDIR is .*/no: .*Remedy"):
        PrivateFolder()
