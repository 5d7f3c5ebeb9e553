"""How an engine's actor starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hybridflow.rollout.engine import actor


@pytest.mark.parametrize("has_cuda", [True, False])
def test_with_cuda_an_engine_decodes_once_before_it_answers(
    has_cuda: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Kernels that SGLang compiles at its first request must not count against the time limits of a step."""
    events: list[str] = []

    class Engine:
        def __init__(self, *_: Any, **__: Any) -> None:
            events.append("opened")

        def warm_up(self) -> None:
            events.append("decoded once")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(actor, "SGLangEngine", Engine)
    monkeypatch.setattr(actor, "CompletionSender", lambda *_: events.append("connected"))
    monkeypatch.setattr(actor, "devices_of", lambda *_: None)
    monkeypatch.setattr(actor, "PrivateFolder", lambda: type("Folder", (), {"path": tmp_path}))
    for name in ("redirect_output", "configure", "keep_private", "leave_allocator_alone", "start_server"):
        monkeypatch.setattr(actor, name, lambda *_: None)
    monkeypatch.setattr(actor, "check_signed", lambda: None)
    given: Any = ("engine-0", "model", {}, 0, None, str(tmp_path / "log"), None, 0, "none", [])
    actor.RolloutWorker(*given)
    assert events == ["opened", *(["decoded once"] if has_cuda else []), "connected"]
