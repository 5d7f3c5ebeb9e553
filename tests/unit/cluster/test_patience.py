"""How long Ray may take to start, by the load of the machine."""

from __future__ import annotations

import time

import pytest
from ray._private import services

from hybridflow.cluster.private_ray import patience, start_limit_s


@pytest.mark.parametrize(
    ("load", "num_cores", "seconds"), [(0.1, 2, 30), (2, 2, 30), (10, 2, 150), (25, 2, 300), (90, 2, 300)]
)
def test_the_limit_grows_with_the_load(load: float, num_cores: int, seconds: float) -> None:
    assert start_limit_s(load, num_cores) == seconds


def test_a_node_that_registers_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([RuntimeError("no such node"), RuntimeError("no such node"), {"node_id": "n"}])

    def get_node(address: str, node_id: str) -> dict[str, str]:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", get_node)
    with patience(5.0):
        assert services.get_node("127.0.0.1:1", "n") == {"node_id": "n"}
    assert services.get_node is get_node


def test_one_that_never_does_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_node(address: str, node_id: str) -> dict[str, str]:
        raise RuntimeError("no such node")

    monkeypatch.setattr(services, "get_node", get_node)
    started = time.monotonic()
    with patience(0.3), pytest.raises(RuntimeError, match="no such node"):
        services.get_node("127.0.0.1:1", "n")
    assert time.monotonic() - started >= 0.3
