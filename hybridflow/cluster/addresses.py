"""The address by which a node speaks to the others."""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil
import ray

from hybridflow.errors import PlacementError


def own_address(network: str) -> str:
    """This node's address within `network` ("10.1.0.0/16"); the one by which Ray knows it where that is empty.

    Raises PlacementError where the node has none there.
    """
    if not network:
        return ray.util.get_node_ip_address()
    wanted = ipaddress.ip_network(network)
    own = [address for address, _ in _addresses()]
    for address in own:
        if ipaddress.ip_address(address) in wanted:
            return address
    raise PlacementError(
        f"cluster.network = {network}: node {socket.gethostname()} has no address in it, only {', '.join(own)}. "
        f"Remedy: name the network that all nodes share"
    )


def use_interface(address: str) -> None:
    """torch's process groups of this process use the interface with this address, unless the environment names one."""
    for own, interface in _addresses():
        if own == address:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)


def _addresses() -> list[tuple[str, str]]:
    """(IPv4 address, interface) of this node."""
    return [
        (entry.address, interface)
        for interface, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
