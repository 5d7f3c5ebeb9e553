"""SGLang plugin, loaded by SGLang itself in each of its processes (entry point group `sglang.srt.plugins`).

On CPU SGLang 0.5.23 drops `sampling_seed`, which it honours on CUDA in deterministic mode only. The sampler beneath can
do it anywhere: given a seed per request it draws by the Gumbel-max trick from a hash of (seed, position, token). The
hook hands the seeds on, so that a completion depends on its own id and not on what else is in the batch. Another
has SGLang fork its processes (`process_server.py`), and a third gives plain memory to a buffer that SGLang would
register with CUDA (`cpu/host_memory.py`). On CUDA too, ranks of an engine sign what they send each other
(`signed_broadcast.py`).
"""

from __future__ import annotations

from typing import Any

BATCH_TARGET = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch"
START_TARGET = "sglang.srt.entrypoints.engine._set_envs_and_config"
MEMORY_TARGET = "sglang.srt.mem_cache.pool_host.common.alloc_with_host_register"


def register() -> None:
    """Entry point; called by SGLang before an engine starts."""
    from hybridflow.rollout.engine.signed_broadcast import sign_objects
    from megatron_ext.platform.device import find_device

    sign_objects()
    if find_device().has_cuda:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from hybridflow.rollout.cpu.host_memory import allocate
    from hybridflow.rollout.cpu.process_server import fork_from_server

    HookRegistry.register(BATCH_TARGET, pass_sampling_seeds, HookType.AFTER)
    HookRegistry.register(START_TARGET, fork_from_server, HookType.AFTER)
    HookRegistry.register(MEMORY_TARGET, allocate, HookType.REPLACE)


def pass_sampling_seeds(info: Any, _cls: type, batch: Any, *_: Any, **__: Any) -> Any:
    """Sets `info.sampling_seed` (int64 [batch]) when every request of the batch has a seed."""
    import torch

    seeds = [request.sampling_params.sampling_seed for request in batch.reqs]
    if all(seed is not None for seed in seeds):
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64)
    return info
