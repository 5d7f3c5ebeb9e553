"""Memory that an engine can give back while the trainer has the device: KV pool, weights and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from hybridflow.cluster.processes import resident_bytes
from hybridflow.errors import RolloutError
from hybridflow.types import MemoryTag
from megatron_ext.platform.device import Device


def reported_bytes(memory_usage: Mapping[str, Any]) -> dict[MemoryTag, int]:
    """Bytes that a rank took of its device, by SGLang's `memory_usage` in GiB, rounded to 0.001."""
    sizes: dict[MemoryTag, float] = {
        "kv_cache": memory_usage["kvcache"],
        "weights": memory_usage["weight"],
        "cuda_graph": sum(memory_usage["graph"].values()),
    }
    return {tag: int(size * 2**30) for tag, size in sizes.items()}


class EngineMemory:
    """Memory of one engine that it can give back.

    Args:
        engine: SGLang's Engine object.
        run: Waits for one of its tokenizer manager's coroutines and returns the result.
        device: What its ranks compute on.
    """

    def __init__(self, engine: Any, run: Callable[[Coroutine[Any, Any, Any]], Any], device: Device) -> None:
        self._engine, self._run = engine, run
        self._has_cuda = device.has_cuda
        self.released: set[MemoryTag] = set()

    def may_release(self, tags: Sequence[MemoryTag]) -> bool:
        """Whether any of this is held. RolloutError where the engine was not opened for it."""
        if not self._engine.server_args.enable_memory_saver:
            raise RolloutError("the engine cannot release memory: set rollout.release_memory = 'on' before it starts")
        return not self.released.issuperset(tags)

    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        """Release an idle engine's memory; the bytes by which SGLang's processes shrank on a CPU, None with CUDA."""
        from sglang.srt.managers import io_struct

        asked: list[MemoryTag] = [tag for tag in tags if tag not in self.released]
        before = self._resident_bytes()
        request = io_struct.ReleaseMemoryOccupationReqInput(tags=list(asked))
        self._run(self._engine.tokenizer_manager.release_memory_occupation(request))
        self.released.update(asked)
        return None if self._has_cuda else before - self._resident_bytes()

    def resume(self, tags: Sequence[MemoryTag]) -> None:
        """Takes released memory again, its content undefined; does nothing for what was not released."""
        from sglang.srt.managers import io_struct

        asked: list[MemoryTag] = [tag for tag in tags if tag in self.released]
        if asked:
            request = io_struct.ResumeMemoryOccupationReqInput(tags=list(asked))
            self._run(self._engine.tokenizer_manager.resume_memory_occupation(request))
            self.released.difference_update(asked)

    def _resident_bytes(self) -> int:
        return 0 if self._has_cuda else resident_bytes(self._engine.get_all_child_pids())
