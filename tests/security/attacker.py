"""A program that attacks sockets as another user, until its input ends: `python -m tests.security.attacker`.

Its input has a line per socket, `tcp HOST:PORT` or `unix PATH`. It knows how each part of a run speaks, and has no key:
it sends random bytes, HTTP, gRPC, gloo's and torch's greetings of a rank that joins, well-formed messages of the reward
stream and of engines, and leaves connections open that say nothing. At the end it prints how many sockets it reached,
and how many refused it.
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  # loaded before this user is another
import os
import random
import socket
import struct
import sys
from collections import deque
from contextlib import suppress

import zmq
import zmq.backend.cython

from hybridflow.types import Scored
from hybridflow.wire.codec import encode
from hybridflow.wire.messages import Bye, Finished, Hello, Packer, Ready, ScoreReply
from tests.builders import build_completion, build_prompt, build_request
from tests.security.other_user import NOBODY

NUM_KEPT = 100
"""Connections that are left open."""
TIMEOUT_S = 1.0
ITEM = "t00001-g0000-c00"


def build_messages() -> list[bytes]:
    """Such as a run's own processes send; the verdict is that of a stranger."""
    completion = build_completion(build_request(build_prompt("train-000000"), group_id="t00001-g0000"))
    verdict = Scored(value=1.0, rule="r", extracted="e", why="mine")
    finished = Finished("engine-0", 1, Packer().pack(completion), 1)
    messages = (Ready("reward-0", 64), ScoreReply(ITEM, verdict), finished, Hello("engine-0", 1), Bye())
    return [bytes(encode(message)) for message in messages]


def build_greetings(rng: random.Random) -> list[bytes]:
    """First bytes of whoever does not speak ZeroMQ."""
    torch_store = b"\x00" + struct.pack("<I", 0x3C85F7CE) + b"\x09" + rng.randbytes(64)  # "validate", then a query
    return [
        rng.randbytes(4096),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /api/job_agent/jobs/ HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        struct.pack("<q", rng.randrange(64)) + bytes(64),  # gloo: the number of a pair
        torch_store,
        b"",
    ]


class Attacker:
    """Becomes user `nobody` on construction; `attack` goes once for one socket."""

    def __init__(self) -> None:
        self._messages = build_messages()
        self._context = zmq.Context()
        self._rng = random.Random(0)
        self._kept: deque[socket.socket | zmq.Socket[bytes]] = deque()
        self.reached: set[str] = set()
        self.refused: set[str] = set()
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        os.chdir("/")

    def attack(self, kind: str, address: str) -> None:
        try:
            if kind == "unix":
                self._greet(socket.AF_UNIX, address, self._rng.randbytes(4096))
            else:
                host, _, port = address.rpartition(":")
                for greeting in build_greetings(self._rng):
                    self._greet(socket.AF_INET, (host, int(port)), greeting)
            self.reached.add(address)
        except PermissionError:
            self.refused.add(address)
            return
        except OSError:
            return  # it has just been closed
        self._speak(f"ipc://{address}" if kind == "unix" else f"tcp://{address}")

    def _greet(self, family: int, address: str | tuple[str, int], greeting: bytes) -> None:
        peer = socket.socket(family)
        peer.settimeout(TIMEOUT_S)
        self._keep(peer)
        peer.connect(address)
        peer.sendall(greeting)

    def _speak(self, address: str) -> None:
        peer = self._context.socket(zmq.DEALER)
        peer.setsockopt(zmq.LINGER, 0)
        self._keep(peer)
        peer.connect(address)
        with suppress(zmq.Again):
            for message in self._messages:
                peer.send(message, zmq.NOBLOCK)

    def _keep(self, peer: socket.socket | zmq.Socket[bytes]) -> None:
        self._kept.append(peer)
        if len(self._kept) > NUM_KEPT:
            self._kept.popleft().close()


if __name__ == "__main__":
    attacker = Attacker()
    for line in sys.stdin:
        attacker.attack(*line.rstrip("\n").split(" ", 1))
    print(len(attacker.reached), len(attacker.refused))
