"""SGLang's processes are forked where a server of theirs runs, and spawned elsewhere, as SGLang does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from hybridflow.rollout.cpu import process_server


@pytest.fixture(autouse=True)
def start_method() -> Iterator[None]:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.parametrize(
    ("started", "metrics", "method"),
    [(True, False, "forkserver"), (False, False, "spawn"), (True, True, "spawn")],
)
def test_processes_are_forked_from_a_server_that_has_their_environment(
    monkeypatch: pytest.MonkeyPatch, started: bool, metrics: bool, method: str
) -> None:
    monkeypatch.setattr(process_server, "is_started", started)
    process_server.fork_from_server(None, SimpleNamespace(enable_metrics=metrics))
    assert multiprocessing.get_start_method() == method
