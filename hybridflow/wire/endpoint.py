"""Endpoints of the reward stream: where a part listens, and what opens it to those that are meant and nobody else.

On one machine these are sockets in a folder that only this user may enter. Between machines they are TCP ports, always
encrypted (CURVE), that admit one client key, made for the run. It is handed to engines and workers through Ray, inside
`Endpoint`, whose text and repr show the address alone: no key in a log or a command line.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

import zmq
from zmq.auth.thread import ThreadAuthenticator

from hybridflow.errors import RewardError
from hybridflow.private_folder import PrivateFolder

ZAP_DOMAIN = b"hybridflow"
_NAMES = ("completions", "workers")


@dataclass(frozen=True)
class ClientKeys:
    """Keys that an engine or a worker needs to connect; Z85 texts."""

    server_public: bytes = field(repr=False)
    public: bytes = field(repr=False)
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Endpoint:
    """Address of a socket of the reward stream, and the keys to it; no keys: a socket in a private folder."""

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


class Listening:
    """Addresses to bind, on this machine alone or beyond it, and what keeps strangers out.

    Args:
        host: Address of this node by which others reach it; None: this machine alone.

    Raises:
        RewardError: a wildcard, or this build of libzmq has no CURVE.
        ConfigError: no private folder can be made.
    """

    def __init__(self, host: str | None) -> None:
        self.keys: ServerKeys | None = None
        self._folder: PrivateFolder | None = None
        if host is None:
            self._folder = PrivateFolder(longest_name=max(map(len, _NAMES)))
            self.completions, self.workers = (f"ipc://{self._folder.path / name}" for name in _NAMES)
            return
        if _is_wildcard(host):  # endpoints are handed out as bound
            raise RewardError(f"cannot bind {host!r}: give the address by which other nodes reach this one")
        self.keys = ServerKeys()
        self.completions = self.workers = f"tcp://{host}:*"

    def close(self) -> None:
        """After the sockets. May be called twice."""
        if self._folder is not None:
            self._folder.close()


class ServerKeys:
    """Key pairs of one run: the stream's own, and the one that all its engines and workers share.

    Raises:
        RewardError: this build of libzmq has no CURVE.
    """

    def __init__(self) -> None:
        if not zmq.has("curve"):
            raise RewardError(
                "the reward stream is bound beyond this machine, where it must be encrypted, but this libzmq "
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


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host in ("", "*")
