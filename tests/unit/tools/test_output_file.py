"""The output of logprobs is continued, never mixed and never lost."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hybridflow.errors import ConfigError, DiskFullError
from hybridflow.tools.commands import interruptible
from hybridflow.tools.output_file import OutputFile

JOB, OTHER = {"model": "a", "temperature": 1.0}, {"model": "a", "temperature": 0.5}


@pytest.fixture
def output(tmp_path: Path) -> OutputFile:
    return OutputFile(tmp_path / "new" / "out.jsonl", data=tmp_path / "rows.jsonl")


def names(output: OutputFile) -> list[str]:
    return sorted(path.name for path in output.path.parent.iterdir())


def test_a_new_output(output: OutputFile) -> None:
    assert output.resume(JOB, overwrite=False) == (0, None)
    assert output.path.read_text() == ""


def test_an_empty_file_is_taken_over(output: OutputFile) -> None:
    output.path.parent.mkdir()
    output.path.touch()
    assert output.resume(JOB, overwrite=False) == (0, None)
    assert names(output) == ["out.jsonl", "out.jsonl.meta.json"]


def test_whole_lines_of_the_same_job_are_kept(output: OutputFile) -> None:
    output.resume(JOB, overwrite=False)
    output.path.write_text('{"logprobs": []}\n{"logprobs": [-1.5]}\n{"logp')
    assert output.resume(JOB, overwrite=False) == (2, None)
    assert output.path.read_text() == '{"logprobs": []}\n{"logprobs": [-1.5]}\n'


def test_lines_of_another_job_are_kept_under_another_name(output: OutputFile) -> None:
    output.resume(JOB, overwrite=False)
    output.path.write_text("first\n")
    assert output.resume(OTHER, overwrite=False) == (0, output.path.with_name("out.jsonl.1"))
    output.path.write_text("second\n")
    assert output.resume(JOB, overwrite=False) == (0, output.path.with_name("out.jsonl.2"))
    assert [output.path.with_name(f"out.jsonl.{number}").read_text() for number in (1, 2)] == ["first\n", "second\n"]
    # Each can still be continued under its name.
    moved = OutputFile(output.path.with_name("out.jsonl.1"), data=output.path)
    assert moved.resume(JOB, overwrite=False) == (1, None)


@pytest.mark.parametrize("marker", [None, "{"])
def test_lines_of_nobody_knows_what_are_kept_too(output: OutputFile, marker: str | None) -> None:
    output.path.parent.mkdir()
    output.path.write_text("precious\n")
    if marker is not None:
        output.path.with_name("out.jsonl.meta.json").write_text(marker)
    assert output.resume(JOB, overwrite=False) == (0, output.path.with_name("out.jsonl.1"))
    assert output.path.with_name("out.jsonl.1").read_text() == "precious\n"


def test_overwrite_starts_anew(output: OutputFile) -> None:
    output.resume(JOB, overwrite=False)
    output.path.write_text("first\n")
    assert output.resume(JOB, overwrite=True) == (0, None)
    assert names(output) == ["out.jsonl", "out.jsonl.meta.json"]


def test_no_input_is_taken_for_the_output(tmp_path: Path) -> None:
    data, responses = tmp_path / "rows.jsonl", tmp_path / "responses.jsonl"
    for path in (data, responses):
        path.write_text("precious\n")
    for option, path in (("data", data), ("responses", responses)):
        with pytest.raises(ConfigError, match=f"is the file of --{option}. Name another one"):
            OutputFile(tmp_path / "." / path.name, data=data, responses=responses)


def test_a_full_disk_is_told_with_the_path(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    said = rf"cannot write {output}: No space left on device\n.*the same command"
    with pytest.raises(DiskFullError, match=said), interruptible("x", output):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DiskFullError, match=f"cannot write a file of {tmp_path}"), interruptible("x", output):
        raise Exception("No space left on device (os error 28)")  # the tokenizers library's
    with pytest.raises(ZeroDivisionError), interruptible("x", output):
        _ = 1 / 0


def test_a_full_disk_leaves_the_marker_of_lines_that_are_there(output: OutputFile) -> None:
    output.resume(JOB, overwrite=False)
    output.path.write_text("{}\n")
    marker = output.path.with_name("out.jsonl.meta.json")
    before = marker.stat().st_ino
    assert output.resume(JOB, overwrite=False) == (1, None)
    assert marker.stat().st_ino == before  # not written again
