"""Ports for what tests and benches start on this machine."""

import contextlib
import random
import socket


def free_port() -> int:
    """Below the range from which the system hands out ports, so that no one else's connection takes it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(15_000, 30_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
