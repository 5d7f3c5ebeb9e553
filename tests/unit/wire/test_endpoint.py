"""Encrypted sockets admit the run's own key and nobody else; a key is in no text."""

from __future__ import annotations

import pickle
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from hybridflow.errors import RewardError
from hybridflow.wire.completion_sender import CompletionSender
from hybridflow.wire.endpoint import ClientKeys, Endpoint
from hybridflow.wire.reward_stream import RewardStream
from hybridflow.wire.worker_channel import WorkerChannel
from tests.builders import build_completion, build_request
from tests.unit.wire.broken_sockets import break_sockets

REQUEST = build_request()
COMPLETION = build_completion(REQUEST)


def test_on_one_machine_it_is_a_folder_of_this_user_alone_which_goes_with_the_stream() -> None:
    stream = RewardStream()
    assert stream.endpoint_workers.keys is None
    sockets = [
        Path(endpoint.address.removeprefix("ipc://"))
        for endpoint in (stream.endpoint_workers, stream.endpoint_completions)
    ]
    folder = sockets[0].parent
    assert {path.parent for path in sockets} == {folder} and all(path.is_socket() for path in sockets)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    stream.close()
    assert not folder.exists()


def test_between_machines_it_is_always_encrypted() -> None:
    stream = RewardStream("127.0.0.1")
    assert stream.endpoint_workers.address.startswith("tcp://127.0.0.1:")
    assert None not in (stream.endpoint_workers.keys, stream.endpoint_completions.keys)
    stream.close()


def test_keys_travel_by_pickle_and_show_in_no_text() -> None:
    keys = ClientKeys(b"server-public", b"public", b"secret")
    endpoint = Endpoint("tcp://10.0.0.1:5", keys)
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint
    for text in (str(endpoint), repr(endpoint), repr(keys)):
        assert "secret" not in text.replace("ClientKeys", "") and "public" not in text


def test_with_the_run_s_key_completions_and_workers_come_through_also_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = RewardStream("127.0.0.1")
    channel = WorkerChannel(stream.endpoint_workers, "w", 1)
    channel.announce([])
    wait_for(lambda: stream.workers == ["w"], "worker")
    stream.expect([REQUEST])
    break_sockets(monkeypatch)
    with CompletionSender(stream.endpoint_completions, "e") as sender:
        wait_for(lambda: stream.counters["stream_restarted"] == 1, "restart")
        sender.send(COMPLETION)
    assert stream.outstanding() == {"g-c00"}
    channel.close()
    stream.close()


@pytest.mark.parametrize("has_server_key", [False, True])
def test_without_the_run_s_key_nothing_comes_through(has_server_key: bool) -> None:
    stream = RewardStream("127.0.0.1")
    keys = None
    if has_server_key:
        assert stream.endpoint_completions.keys is not None
        keys = ClientKeys(stream.endpoint_completions.keys.server_public, *zmq.curve_keypair())
    stranger = Endpoint(stream.endpoint_completions.address, keys)
    with (
        CompletionSender(stranger, "stranger", send_timeout_s=0.5, flush_timeout_s=0) as sender,
        pytest.raises(RewardError, match="nothing was heard"),
    ):
        sender.send(COMPLETION)
    assert stream.counters == {}
    stream.close()


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end, f"waited for the {what}"
        time.sleep(0.005)
