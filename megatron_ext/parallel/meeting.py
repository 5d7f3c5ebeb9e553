"""Rendezvous of ranks: where they find each other, and what each must know to be one of them.

The store in which ranks meet knows no credentials, nor does gloo, and torch's collectives of objects unpickle whatever
a member of the group sends. So a file store is a file in a folder that nobody else may enter; a TCP store is bound to
one address and not to every interface; and with a token, ranks prove that they have it before any object is read, and
sign each object that they send.

What a token does not do: it does not encrypt, and tensors travel unsigned.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

_LOOPBACK = "lo"
_DIGEST_BYTES = hashlib.sha256().digest_size
_key: bytes | None = None
_plain = c10d._object_to_tensor, c10d._tensor_to_object


class StrangerError(RuntimeError):
    """A member of a process group does not know the token of the run."""


def open_store(address: str, port: int, rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """The store of a group; `port` 0: `address` is the path of a file, which is new and on this machine.

    Where all ranks are on this machine, their sockets are on the loopback, unless the environment names an interface.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    if port == 0 or address == "localhost" or address.startswith("127."):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _LOOPBACK)
    if port == 0:
        if not Path(address).is_absolute():
            raise ValueError(f"{address!r} with port 0: give the path of a file in which ranks of this machine meet")
        store: dist.Store = dist.FileStore(address, world_size)
        store.set_timeout(timeout)
        return store
    descriptor = _listen(address, port) if rank == 0 else None
    return dist.TCPStore(
        address, port, world_size, is_master=rank == 0, timeout=timeout, master_listen_fd=descriptor, multi_tenant=True
    )


def _listen(address: str, port: int) -> int:
    """A socket bound to this address alone: left to itself, torch listens on every interface."""
    family, kind, protocol, _, bound = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(bound)
        listener.listen(2048)
    except BaseException:
        listener.close()
        raise
    return listener.detach()


def require_token(token: str) -> None:
    """From now on objects that this process sends over process groups are signed, and no other is unpickled."""
    global _key
    _key = token.encode()
    c10d._object_to_tensor, c10d._tensor_to_object = _sign, _verify


def forget_token() -> None:
    """Back to torch's own way."""
    global _key
    _key = None
    c10d._object_to_tensor, c10d._tensor_to_object = _plain


def prove_membership(rank: int, world_size: int, device: torch.device) -> None:
    """Every rank shows every other that it has the token; does nothing without one.

    Raises StrangerError, naming the rank that could not.
    """
    if _key is None:
        return
    proofs = [_digest(f"rank {number} of {world_size}".encode()) for number in range(world_size)]
    mine = torch.frombuffer(bytearray(proofs[rank]), dtype=torch.uint8).to(device)
    shown = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(shown, mine)
    for number, (proof, tensor) in enumerate(zip(proofs, shown, strict=True)):
        if not hmac.compare_digest(proof, tensor.cpu().numpy().tobytes()):
            raise StrangerError(f"who joined as rank {number} of {world_size} does not know the token of this run")


def seal(content: bytes) -> bytes:
    """The content, and behind it its signature."""
    return content + _digest(content)


def unseal(sealed: bytes) -> bytes:
    """The content. Raises StrangerError if the signature is none of this run."""
    end = len(sealed) - _DIGEST_BYTES
    if end < 0 or not hmac.compare_digest(_digest(sealed[:end]), sealed[end:]):
        raise StrangerError("an object came over a process group without the signature of this run; it was not read")
    return sealed[:end]


def _digest(content: bytes) -> bytes:
    assert _key is not None
    return hmac.digest(_key, content, "sha256")


def _sign(obj: Any, device: Any, group: Any) -> tuple[torch.Tensor, torch.Tensor]:
    content, size = _plain[0](obj, device, group)
    signature = bytearray(_digest(content.cpu().numpy().tobytes()))
    signed = torch.cat((content, torch.frombuffer(signature, dtype=torch.uint8).to(content.device)))
    return signed, size + _DIGEST_BYTES


def _verify(tensor: torch.Tensor, tensor_size: Any, group: Any) -> Any:
    received = tensor.cpu().numpy().tobytes()[: max(int(tensor_size), 0)]
    return _plain[1](tensor, len(unseal(received)), group)
