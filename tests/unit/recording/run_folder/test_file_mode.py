"""Files of a run are for its user alone, unless run.mode says otherwise; the user's umask is kept to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.data.rows import write_rows
from hybridflow.errors import ConfigError
from hybridflow.observability.log import redirect_output
from hybridflow.recording.run_folder import file_mode as module
from hybridflow.recording.run_folder.file_mode import file_mode, write_privately
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.trackers import JsonlTracker
from tests.unit.loop.fakes import build_config


@pytest.fixture(autouse=True)
def _umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = os.umask(0o022)
    monkeypatch.setattr(module, "umask_of_user", None)
    yield
    os.umask(before)


def modes(folder: Path) -> set[str]:
    return {oct(path.stat().st_mode & 0o777) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize(
    ("mode", "umask", "expected"),
    [
        ("0700", 0o022, {"0o700", "0o600"}),
        ("0750", 0o022, {"0o750", "0o640"}),
        ("0755", 0o027, {"0o750", "0o640"}),  # the umask closes what run.mode would open
        ("0755", 0o077, {"0o700", "0o600"}),
    ],
)
def test_folders_and_files_have_the_mode_of_the_run(tmp_path: Path, mode: str, umask: int, expected: set[str]) -> None:
    os.umask(umask)
    write_privately()  # as every command does first
    folder = TrainFolder(build_config(tmp_path, run__mode=mode))
    with folder.held():
        folder.create(build_config(tmp_path, run__mode=mode))
        JsonlTracker(folder.metrics).log(1, {"a": 1.0})
        (folder.checkpoints / "rl-000001").mkdir(parents=True)
        log = f"from {redirect_output.__module__} import redirect_output as r; from pathlib import Path; import sys"
        subprocess.run([sys.executable, "-c", f"{log}; r(Path(sys.argv[1]))", folder.logs / "a.log"], check=True)
        folder.keep()

    assert modes(folder.path) == expected


def test_other_commands_write_for_their_user_alone(tmp_path: Path) -> None:
    write_privately()
    write_privately()
    (tmp_path / "rows.jsonl").write_text("")
    write_rows(tmp_path / "rows.parquet", [])
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("rows.jsonl", "rows.parquet")] == [0o600, 0o600]


def test_without_a_command_before_it_the_mode_holds_inside_only(tmp_path: Path) -> None:
    with file_mode("0700"):
        (tmp_path / "inside").write_text("")
    (tmp_path / "outside").write_text("")
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("inside", "outside")] == ["0o600", "0o644"]


@pytest.mark.parametrize("mode", ["700", "0070", "0888", "u+rwx", "07000"])
def test_a_mode_that_is_none_or_locks_its_user_out_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.mode"):
        load_config([Path("configs/quickstart.toml")], [f"run.mode='{mode}'"], Config)
