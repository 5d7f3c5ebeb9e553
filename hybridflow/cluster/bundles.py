"""The order of a placement group's bundles, asked of the nodes: neighbouring slots are neighbouring GPUs of one node.

Ray fills bundles by a sort that keeps equal ones in no order: from 17 bundles on, on nodes of 8 GPUs, the first eight
may be on two nodes, and a tensor parallel group of them with it.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from hybridflow.cluster.devices import DEVICE_ENVIRONMENT, device_index, this_device
from hybridflow.errors import PlacementError

ASK_TIMEOUT_S = 300.0
ASK_SHARE = 0.01
"""Part of a bundle's GPU that a question takes."""


@dataclass(frozen=True)
class Place:
    """Where a bundle is."""

    node: str
    address: str = ""
    gpu: int = 0
    """Index of its GPU on the node; 0 on a CPU."""
    store_bytes: int = 0
    """Size of Ray's object store on the node."""


def order_bundles(places: Sequence[Place]) -> list[int]:
    """Bundles in the order of slots: node by node, the one with most bundles first, and by GPU within a node.

    Equally full nodes follow one another by address. The same places give the same order, whatever Ray's was.
    """
    counts = Counter(place.node for place in places)

    def key(bundle: int) -> tuple[Any, ...]:
        place = places[bundle]
        return -counts[place.node], _as_number(place.address), place.address, place.node, place.gpu, bundle

    return sorted(range(len(places)), key=key)


def ask_nodes(nodes: Sequence[str], strategy: Callable[[int], Any]) -> tuple[list[int], bool]:
    """GPU of each bundle, and whether torch computes on them; `nodes` and `strategy` by bundle.

    Raises PlacementError where nodes differ, or do not answer within `ASK_TIMEOUT_S`.
    """
    look = ray.remote(num_cpus=0, num_gpus=ASK_SHARE, runtime_env={"env_vars": DEVICE_ENVIRONMENT})(_look)
    firsts = {node: bundle for bundle, node in reversed(list(enumerate(nodes)))}
    asked = [
        look.options(scheduling_strategy=strategy(bundle)).remote(firsts[node] == bundle)
        for bundle, node in enumerate(nodes)
    ]
    try:
        answers = ray.get(asked, timeout=ASK_TIMEOUT_S)
    except GetTimeoutError as error:
        late = ray.wait(asked, num_returns=len(asked), timeout=0)[1]
        silent = sorted({node for node, ref in zip(nodes, asked, strict=True) if ref in late})
        raise PlacementError(
            f"Ray started no process on the GPUs of nodes {', '.join(silent)} within {ASK_TIMEOUT_S:g} s"
        ) from error
    has_cuda = {node: answers[bundle][1] for node, bundle in firsts.items()}
    if len(set(has_cuda.values())) > 1:
        without = sorted(node for node, computes in has_cuda.items() if not computes)
        raise PlacementError(
            f"torch finds no CUDA on nodes {', '.join(without)}, whose GPUs Ray counts, and finds it on others: "
            "install the same build of torch, and the driver, on every node"
        )
    return [gpu for gpu, _ in answers], all(has_cuda.values())


def _look(with_torch: bool) -> tuple[int, bool]:
    """Inside a bundle: index of its GPU, and, with torch, whether that finds CUDA here."""
    name = this_device()
    assert name is not None, "asked of bundles with a GPU alone"
    if not with_torch:
        return device_index(name), False
    from megatron_ext.platform.device import find_device  # here: one process of a node needs torch

    return device_index(name), find_device().has_cuda


def _as_number(address: str) -> int:
    try:
        return int(ipaddress.ip_address(address))
    except ValueError:
        return 0
