"""A full disk is told with the file, the free space and the remedy, whatever it surfaced as."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hybridflow.errors import CheckpointError, DiskFullError, TrainerError, notes_of
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.run_folder.disk import explain_full
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.timeline import TimelineRecord
from hybridflow.recording.trackers import JsonlTracker
from tests.builders import build_group, build_request
from tests.unit.loop.fakes import build_config

SAID = os.strerror(errno.ENOSPC)
REQUEST = build_request()


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A file in which every write fails for want of space."""
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda path: JsonlTracker(path).log(1, {"reward/mean": 0.5}),
        lambda path: CompletionRecord(path).append(1, [build_group(REQUEST, [1.0])]),
        lambda path: TimelineRecord(path).append(1, {"step": (0.0, 1.0)}),
    ],
)
def test_each_record_names_its_file(full: Path, tmp_path: Path, write) -> None:
    with pytest.raises(OSError) as caught:
        write(full)
    told = str(explain_full(caught.value, tmp_path))
    assert told.startswith(f"cannot write {full}: {SAID}\nThe disk of {tmp_path} has ")
    assert "MiB free of " in told and "Remedy: make room there" in told and "--resume" in told


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (OSError(errno.EDQUOT, "quota", "/x/y"), "cannot write /x/y: quota"),
        (CheckpointError(f"cannot write checkpoint /x: [Errno 28] {SAID}"), "cannot write checkpoint /x"),
        (TrainerError(f"train worker 1 failed in save_checkpoint: OSError: {SAID}"), "train worker 1 failed in save"),
        (OSError(errno.EACCES, "denied", "/x/y"), None),
        (TrainerError("train worker 1 died"), None),
    ],
)
def test_what_ends_a_run_says_so_and_where_it_goes_on(tmp_path: Path, error: Exception, begins: str | None) -> None:
    with pytest.raises(DiskFullError if begins else type(error)) as caught, TrainFolder(build_config(tmp_path)).held():
        raise error
    assert str(caught.value).startswith(begins or str(error))
    assert len(notes_of(caught.value)) == 1


def test_the_first_error_is_told_and_not_what_closes_files_behind_it(tmp_path: Path) -> None:
    try:
        try:
            raise CheckpointError(f"cannot write checkpoint /x: {SAID}")
        finally:
            raise OSError(errno.ENOSPC, SAID, "/y")
    except OSError as error:
        assert str(explain_full(error, tmp_path)).startswith("cannot write checkpoint /x")
