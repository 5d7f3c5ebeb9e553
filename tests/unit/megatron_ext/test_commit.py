"""A committed folder is whole after a crash at any operation, and each damaged file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError


def save(target: Path, text: str) -> None:
    """A folder with a file, a folder of files, and one with a manifest of its own."""
    folder = commit.begin(target)
    (folder / "state.json").write_text(text)
    for inner in ("plain", "checked"):
        (folder / inner).mkdir()
        (folder / inner / "data.bin").write_bytes(text.encode() * 100)
    inner_files = commit.measure_files(folder / "checked", ["data.bin"])
    commit.write_manifest(folder / "checked", files=inner_files, description={})
    files = commit.measure_files(folder, commit.list_files(folder))
    commit.commit(folder, target, files=files, description={"text": text})


def check(target: Path) -> str:
    """The text of a folder, after all its bytes have been checked."""
    commit.check_sizes(target)
    commit.check_contents(target)
    commit.check_contents(target / "checked")
    return commit.read_manifest(target).description["text"]


def test_what_was_committed_is_found_and_whole(tmp_path: Path) -> None:
    save(tmp_path / "a", "one")
    assert commit.list_committed(tmp_path) == [tmp_path / "a"]
    assert check(tmp_path / "a") == "one"
    listed = json.loads((tmp_path / "a" / "manifest.json").read_text())["files"]
    assert sorted(listed) == ["checked/manifest.json", "plain/data.bin", "state.json"]
    assert listed["state.json"] == [3, 0x7A6C86F1]  # CRC-32 of b"one"


@pytest.mark.parametrize("existing", [None, "old"])
def test_a_crash_at_any_operation_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: str | None
) -> None:
    """Stops before the first, second, ... operation on the disk, until one attempt goes through."""
    for crash_at in range(100):
        folder = tmp_path / str(crash_at)
        folder.mkdir()
        if existing:
            save(folder / "a", existing)
        with monkeypatch.context() as patched:
            crashed = crash_before(patched, crash_at)
            try:
                save(folder / "a", "new")
            except KeyboardInterrupt:
                assert crashed()
        found = [check(path) for path in commit.list_committed(folder)]
        assert found in ([["new"]] if existing is None else [["old"], ["new"]]) or (not found and existing is None)
        save(folder / "a", "later")
        assert [check(path) for path in commit.list_committed(folder)] == ["later"]
        assert [path.name for path in folder.iterdir()] == ["a"]
        if not crashed():
            assert crash_at > 10 and found == ["new"]
            return
    pytest.fail("the save never went through")


def crash_before(patched: pytest.MonkeyPatch, number: int) -> Callable[[], bool]:
    """Makes operation `number` raise instead; tells whether it came to that."""
    calls = [0]

    def interrupting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number + 1:
                raise KeyboardInterrupt
            return operation(*args, **kwargs)

        return run

    for name in ("rename", "mkdir", "write_text", "write_bytes", "unlink"):
        patched.setattr(Path, name, interrupting(getattr(Path, name)))
    patched.setattr(commit.shutil, "rmtree", interrupting(commit.shutil.rmtree))
    patched.setattr(commit, "flush", interrupting(commit.flush))
    return lambda: calls[0] > number


@pytest.mark.parametrize("name", ["state.json", "plain/data.bin", "checked/data.bin"])
def test_a_truncated_or_missing_file_is_named_without_reading_any(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a", "one")
    path = tmp_path / "a" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BrokenCheckpointError, match=rf"{name} has \d+ bytes, but \d+ were written.*earlier one"):
        commit.check_sizes(tmp_path / "a")
    path.unlink()
    with pytest.raises(BrokenCheckpointError, match=f"{name} is missing"):
        commit.check_sizes(tmp_path / "a")


def test_a_changed_file_is_named_by_the_process_that_reads_it(tmp_path: Path) -> None:
    save(tmp_path / "a", "one")
    (tmp_path / "a" / "state.json").write_text("two")
    commit.check_sizes(tmp_path / "a")
    messages = []
    for part in range(3):
        try:
            commit.check_contents(tmp_path / "a", part=part, num_parts=3)
        except BrokenCheckpointError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert "state.json has CRC-32 11ca8a66, but 7a6c86f1 was written" in messages[0]


def test_a_changed_inner_manifest_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a", "one")
    path = tmp_path / "a" / "checked" / "manifest.json"
    path.write_text(path.read_text().replace("300", "301"))
    with pytest.raises(BrokenCheckpointError, match=r"checked/manifest.json has CRC-32"):
        commit.check_sizes(tmp_path / "a")


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match="there is no folder"):
        commit.read_manifest(tmp_path / "none")
    (tmp_path / "a").mkdir()
    with pytest.raises(BrokenCheckpointError, match=r"has no manifest.json: it is no checkpoint that was finished"):
        commit.read_manifest(tmp_path / "a")
    for content in ('{"version": 1, "files": {"x": 3}}', "[" * 100_000):
        (tmp_path / "a" / "manifest.json").write_text(content)
        with pytest.raises(BrokenCheckpointError, match=r"manifest.json cannot be read"):
            commit.read_manifest(tmp_path / "a")


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    for name in "abc":
        save(tmp_path / name, name)
    commit.keep_last(sorted(commit.list_committed(tmp_path)), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]
    commit.keep_last(sorted(commit.list_committed(tmp_path)), 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_a_file_that_was_put_there_later_is_named(tmp_path: Path) -> None:
    for place in ("later.bin", "plain/later.bin", "checked/later.bin"):
        save(tmp_path / "a", "one")
        (tmp_path / "a" / place).write_text("x")
        with pytest.raises(BrokenCheckpointError, match=f"{tmp_path}/a/{place} is not in .*manifest.json"):
            commit.check_sizes(tmp_path / "a")
