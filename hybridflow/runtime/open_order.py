"""Order of opening where engines and trainer share devices.

SGLang sizes its KV pool by the memory that is free, and its ranks must find about as much of it; a trainer that loads
meanwhile takes part of it from some. So the engines come first, and give back what they took; then the trainer loads.
On a CPU, or with devices of their own, they start side by side, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable

from hybridflow.rollout.driver.engine_group import EngineGroup
from hybridflow.types import MemoryTag

RELEASES: tuple[tuple[MemoryTag, ...], ...] = (("kv_cache",), ("weights", "cuda_graph"))
"""Parts that engines release together; named by the first."""


def open_in_order(rollout: EngineGroup, open_trainer: Callable[[], None], *, shared: bool) -> dict[str, int]:
    """Waits for engines that have been launched, and for `open_trainer`.

    Returns, by release, the bytes that engines gave back and have not taken again. With CUDA, where only the device
    could tell and no train worker is there to ask, these are what SGLang says it took of it.
    """
    if not shared:
        open_trainer()
        rollout.wait_ready()
        return {}
    rollout.wait_ready()
    released: dict[str, int] = {}
    for tags in RELEASES:
        measured = rollout.release(tags)
        released[tags[0]] = measured if measured is not None else rollout.taken_bytes(tags)
    open_trainer()
    return released
