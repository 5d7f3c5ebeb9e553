"""Sockets of a reward stream that fail in the middle of a run."""

from __future__ import annotations

import pytest
import zmq

from hybridflow.wire.broker_sockets import BrokerSockets


def break_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look at the sockets of a stream of this process fails, once."""
    receive = BrokerSockets.receive

    def fail(sockets: BrokerSockets, timeout_ms: int) -> None:
        monkeypatch.setattr(BrokerSockets, "receive", receive)
        raise zmq.ZMQError(zmq.ENOTSOCK)

    monkeypatch.setattr(BrokerSockets, "receive", fail)
