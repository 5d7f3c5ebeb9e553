"""The tools' commands run in this process, where starting Ray is an error (tests/unit/conftest.py)."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybridflow import cli
from tests.dist_cpu.tiny_models import write_model

Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs `hybridflow <arguments>`, which must end with this exit code; returns its message, on one line."""

    def run(*arguments: object, code: int = 1) -> str:
        monkeypatch.setattr(sys, "argv", ["hybridflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        assert caught.value.code == code, output.err
        assert "Traceback" not in output.out + output.err
        told = output.out.splitlines()  # a run says from its first second what it does
        assert all(
            re.fullmatch(r"\d\d:\d\d:\d\d note: (loading the libraries|reading model|kernels) .*", line)
            for line in told
        )
        if code == 1:
            assert output.err.startswith("error: "), output.err
        return " ".join(output.err.split())

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny random models: 4 layers, 4 heads, 2 key-value heads, vocabulary of 259, window of 256."""
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(name, root) for name in ("qwen3_tied", "llama", "qwen3_moe")}
