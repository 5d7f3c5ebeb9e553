"""Where a part of the reward stream listens, and the CURVE keys that open it.

Beyond the loopback, the sockets are encrypted and admit one client key, made for the run. It is handed to engines and
workers through Ray, inside `Endpoint`, whose text and repr show the address alone: no key in a log or a command line.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq
from zmq.auth.thread import ThreadAuthenticator

from hybridflow.errors import RewardError

ZAP_DOMAIN = b"hybridflow"


@dataclass(frozen=True)
class ClientKeys:
    """What an engine or a worker needs to connect; Z85 texts."""

    server_public: bytes = field(repr=False)
    public: bytes = field(repr=False)
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Endpoint:
    """Address of a socket of the reward stream, and the keys to it; no keys: not encrypted."""

    address: str
    keys: ClientKeys | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.address

    def connect(self, socket: zmq.Socket[bytes]) -> None:
        """Connects; the socket's other options must be set before."""
        if self.keys is not None:
            socket.curve_serverkey = self.keys.server_public
            socket.curve_publickey = self.keys.public
            socket.curve_secretkey = self.keys.secret
        socket.connect(self.address)


class ServerKeys:
    """Key pairs of one run: the stream's own, and the one that all its engines and workers share.

    Raises:
        RewardError: this build of libzmq has no CURVE.
    """

    def __init__(self) -> None:
        if not zmq.has("curve"):
            raise RewardError(
                "the reward stream is bound beyond the loopback, where it must be encrypted, but this libzmq "
                f"({zmq.zmq_version()}) has no CURVE: install pyzmq from its wheel"
            )
        server_public, self._secret = zmq.curve_keypair()
        client_public, client_secret = zmq.curve_keypair()
        self.for_clients = ClientKeys(server_public, client_public, client_secret)

    def protect(self, socket: zmq.Socket[bytes]) -> None:
        """Makes a socket that is not bound yet admit only holders of the client key."""
        socket.zap_domain = ZAP_DOMAIN
        socket.curve_secretkey = self._secret
        socket.curve_server = True

    def start_authenticator(self, context: zmq.Context[zmq.Socket[bytes]]) -> Callable[[], None]:
        """Admits the client key in all sockets of this context; returns what ends that, before the context ends."""
        admitted = self.for_clients.public
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(ZAP_DOMAIN.decode(), _OneKey(admitted))
        return authenticator.stop


class _OneKey:
    """Credentials provider of pyzmq's authenticator."""

    def __init__(self, admitted: bytes) -> None:
        self._admitted = admitted

    def callback(self, domain: str, key: bytes) -> bool:
        return domain == ZAP_DOMAIN.decode() and key == self._admitted


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach `host`. A name counts as beyond, unless it is localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def refuse_wildcard(host: str) -> None:
    """RewardError where `host` says no address by which others can come: endpoints are handed out as bound."""
    if host in ("*", "0.0.0.0", "::"):
        raise RewardError(f"cannot bind {host!r}: give the address by which other nodes reach this one")
