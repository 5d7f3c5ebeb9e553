"""Room for buckets of whole tensors in Ray's object stores, by which they travel from one node to another.

Above its size a store writes to disk, or waits for ever. So what cannot fit is refused before anything is loaded.
Within one node buckets lie in memory that its processes share (`shared_buckets`), and no store is asked for room.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from hybridflow.cluster.bundles import Place
from hybridflow.cluster.workers import MAX_UNREAD
from hybridflow.errors import PlacementError
from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.mapping import expected_shapes

MIB = 2**20
BEING_LOADED = 3
"""Two buckets that engines load and one in the driver's hand, see `rollout.driver.weight_sync`; copied to each node."""


def largest_bucket(hf_config: HFConfig, element_bytes: int, bucket_bytes: int) -> tuple[int, str]:
    """Bytes of the largest bucket of a model, and the tensor that is larger than `bucket_bytes` alone, or ""."""
    sizes = {name: math.prod(shape) * element_bytes for name, shape in expected_shapes(hf_config).items()}
    name = max(sizes, key=sizes.__getitem__)
    return (sizes[name], name) if sizes[name] > bucket_bytes else (bucket_bytes, "")


def check_object_stores(places: Sequence[Place], senders: Sequence[int], largest: tuple[int, str]) -> None:
    """Raises PlacementError, with sizes and remedy, for a node whose store cannot hold the buckets that are on the way.

    Args:
        places: Of each slot.
        senders: Slots of the train workers that send, one per pipeline stage; each is `MAX_UNREAD` buckets ahead.
        largest: As from `largest_bucket`.
    """
    size, tensor = largest
    sending = Counter(places[slot].node for slot in senders)
    for place in {place.node: place for place in places}.values():
        count = BEING_LOADED + MAX_UNREAD * sending[place.node]
        if count * size > place.store_bytes:
            smaller = "" if tensor else "lower rollout.weight_bucket_mib, "
            cause = f" ({tensor} alone has as much)" if tensor else ""
            raise PlacementError(
                f"weights go from node to node as whole tensors by Ray's object store, in buckets of "
                f"{size / MIB:,.0f} MiB{cause}. Node {place.address} needs room for {count} of them, "
                f"{count * size / MIB:,.0f} MiB, and its store has {place.store_bytes / MIB:,.0f} MiB. Remedy: "
                f"{smaller}start Ray there with --object-store-memory={count * size}, give engines devices of their "
                "own (rollout.own_devices = true), to which weights are broadcast, or run on one node"
            )
