"""Where torch keeps what it compiled, for the processes of a run and after them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from hybridflow.compiled_kernels import VARIABLE, forget_empty_folder, kept_in


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


def test_it_goes_with_the_run_unless_the_user_has_chosen(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = temporary / "run"
    inside = {VARIABLE: str(run / "inductor")}
    assert kept_in(run) == inside
    monkeypatch.setenv(VARIABLE, str(temporary / "torchinductor_me"))  # as torch sets it when it is imported
    assert kept_in(run) == inside
    for chosen in ("/data/kernels", str(temporary / "mine"), "/data/torchinductor_me"):
        monkeypatch.setenv(VARIABLE, chosen)
        assert kept_in(run) == {}


def test_the_folder_of_the_driver_goes_if_it_is_empty_and_torchs_own(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_empty_folder()
    made, full, chosen = temporary / "torchinductor_a", temporary / "torchinductor_b", temporary / "mine"
    for path in (made, full / "kernel", chosen):
        path.mkdir(parents=True)
    for path in (made, made, full, chosen):
        monkeypatch.setenv(VARIABLE, str(path))
        forget_empty_folder()
    assert sorted(path.name for path in temporary.iterdir()) == ["mine", "torchinductor_b"]
