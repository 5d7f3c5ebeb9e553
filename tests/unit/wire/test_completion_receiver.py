"""Completions that nobody scores, over real ZeroMQ on the loopback."""

from __future__ import annotations

import threading

import pytest

from hybridflow.errors import RewardError
from hybridflow.types import Completion, TokenColumns
from hybridflow.wire.completion_receiver import CompletionReceiver
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.endpoint import Endpoint
from tests.builders import build_completion

DEADLINE_S = 30.0


def completion(index: int) -> Completion:
    return build_completion(index=index, tokens=TokenColumns(ids=[2, index], rollout_logprobs=[-1.0, -0.5]))


def send(endpoint: Endpoint, number: int) -> None:
    """Every other one under a lease that is lost."""
    with CompletionSender(endpoint, "e", flush_timeout_s=0) as sender:
        for index in range(number):
            sender.send(completion(index), attempt=index % 2)


def take(receiver: CompletionReceiver, number: int) -> list[Completion]:
    taken: list[Completion] = []
    while len(taken) < number:
        if (item := receiver.next(DEADLINE_S)) is not None:
            taken.append(item)
    return taken


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_completions_come_in_order_and_those_not_admitted_do_not(host: str | None) -> None:
    with CompletionReceiver(host, lambda message: message.attempt == 0) as receiver:
        assert (receiver.endpoint_completions.keys is not None) is (host is not None)
        engine = threading.Thread(target=send, args=(receiver.endpoint_completions, 20))
        engine.start()
        assert take(receiver, 10) == [completion(index) for index in range(0, 20, 2)]
        engine.join(DEADLINE_S)


def test_without_the_key_nothing_comes_through() -> None:
    with CompletionReceiver("127.0.0.1", lambda message: True) as receiver:
        stranger = Endpoint(receiver.endpoint_completions.address)
        with CompletionSender(stranger, "e", send_timeout_s=0.3, flush_timeout_s=0) as sender:
            with pytest.raises(RewardError, match="nothing was heard"):
                sender.send(completion(0))
            assert receiver.next(0.1) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_an_address_that_is_not_of_this_node_is_refused(host: str) -> None:
    with pytest.raises(RewardError, match="cannot"):
        CompletionReceiver(host, lambda message: True)
