"""SGLang's arguments and environment for a configured engine, on CPU and on CUDA."""

from __future__ import annotations

import difflib
from collections.abc import MutableMapping
from typing import Any

from hybridflow.cluster.devices import DEVICE_ENVIRONMENT
from hybridflow.config.rollout_section import RolloutSection
from hybridflow.errors import ConfigError
from hybridflow.rollout.cpu import cpu_arguments, cpu_environment
from hybridflow.rollout.engine.sglang_messages import MASK_LIMIT_TOKENS
from hybridflow.rollout.sync.rank_loader import LOADER

# SGLang streams a request each so many tokens. Only finished completions leave the engine, and every chunk repeats all
# logprobs so far, so a chunk before the end would be quadratic work for nothing.
NEVER_STREAM_PARTIAL = 1 << 30
KEPT_BACK_TOKENS = 8
"""Positions that SGLang 0.5.23 keeps back of its window and KV pool, and is given more: a request gets at most
context_length - 2 tokens, and a prompt of more than context_length - 7 is refused (managers/tp_worker.py)."""


TELLS_EXPERTS = "enable_return_routed_experts"
"""SGLang's argument without which no request may ask for experts: it makes the buffers."""
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def engine_environment(section: RolloutSection, index: int, *, has_cuda: bool = False) -> dict[str, str]:
    """Environment variables that the process of engine `index` needs from its start; `has_cuda` is of its slots."""
    # The positions that it keeps back lie behind the model's window. What was asked for is checked before.
    window = DEVICE_ENVIRONMENT | {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}
    if not has_cuda:
        return window | cpu_environment(section.num_threads, section.tp_size, index)
    # Without it CUDA graphs stay when "cuda_graph" is released. Untested.
    return window | ({"SGLANG_MEMORY_SAVER_CUDA_GRAPH": "true"} if releases_memory(section, has_cuda) else {})


def leave_allocator_alone(environment: MutableMapping[str, str]) -> None:
    """Takes out what sets torch's allocator: it may be there for the trainer, and memory that an engine releases, or
    opens by CUDA IPC, cannot lie in expandable segments."""
    for name in ALLOCATOR_VARIABLES:
        environment.pop(name, None)


def releases_memory(section: RolloutSection, has_cuda: bool = False) -> bool:
    """Whether engines give their memory back while the trainer works."""
    shares_device = has_cuda and not section.own_devices
    return section.release_memory == "on" or (section.release_memory == "auto" and shares_device)


def build_arguments(
    section: RolloutSection, *, dtype: str, seed: int, has_cuda: bool = False, tells_experts: bool = False
) -> dict[str, Any]:
    """ServerArgs fields for an engine whose slots have CUDA, or a CPU; `rollout.sglang` has the last word.

    With `tells_experts` it can say which experts it chose.

    Raises ConfigError for a name that SGLang does not have.
    """
    arguments: dict[str, Any] = {
        "tp_size": section.tp_size,
        "context_length": section.context_tokens + KEPT_BACK_TOKENS,
        "max_running_requests": section.max_running_requests,
        "random_seed": seed,
        "stream_interval": NEVER_STREAM_PARTIAL,
        # Requests that share a prefix wait until one of them has put it into the cache.
        "schedule_policy": "lpm",
        "skip_server_warmup": True,
        # Else the scheduler spins on a core while it has nothing to do: in TRAIN, beside the trainer.
        "sleep_on_idle": True,
        "log_level": "error",
        "trust_remote_code": False,
    }
    if releases_memory(section, has_cuda):
        arguments["enable_memory_saver"] = True
    if section.kv_cache_tokens is not None:
        arguments["max_total_tokens"] = section.kv_cache_tokens + KEPT_BACK_TOKENS
    arguments |= {"dtype": dtype} if has_cuda else cpu_arguments(dtype)
    check_sampling_mask(section.top_p)
    if section.top_p < 1:
        arguments["sampling_mask_max_tokens"] = MASK_LIMIT_TOKENS
    check_experts(tells_experts)
    if tells_experts:
        arguments[TELLS_EXPERTS] = True
    check_names(section.sglang)
    own = {"custom_weight_loader": [LOADER, *section.sglang.get("custom_weight_loader", [])]}
    return arguments | section.sglang | own


def check_sampling_mask(top_p: float) -> None:
    """Raises ConfigError if the installed SGLang cannot say which tokens top-p left in."""
    if top_p == 1:
        return
    from sglang.srt.server_args import ServerArgs  # seconds and some 400 MB

    if "sampling_mask_max_tokens" not in ServerArgs.__struct_fields__:
        raise ConfigError(
            f"rollout.top_p = {top_p:g}: the installed SGLang does not return which tokens could be drawn, so the "
            f"trainer would compute other probabilities than completions were drawn with. Set rollout.top_p = 1, or "
            f"install a SGLang with return_sampling_mask"
        )


def check_experts(tells_experts: bool) -> None:
    """Raises ConfigError if the installed SGLang cannot say which experts it chose."""
    if not tells_experts:
        return
    from sglang.srt.server_args import ServerArgs  # seconds and some 400 MB

    if TELLS_EXPERTS not in ServerArgs.__struct_fields__:
        raise ConfigError(
            'algorithm.routing_replay = "engine": the installed SGLang does not say which experts it chose. Remedy: '
            f'set algorithm.routing_replay = "off", or install a SGLang with {TELLS_EXPERTS}'
        )


def check_engine_layout(num_attention_heads: int, tp_size: int, named: str) -> None:
    """Raises ConfigError for ranks over which SGLang cannot cut the attention heads; `named` is how the user said it.

    Key-value heads need not divide: SGLang repeats them.
    """
    if num_attention_heads % tp_size:
        fitting = [size for size in range(1, num_attention_heads + 1) if num_attention_heads % size == 0]
        raise ConfigError(
            f"{named}: it must divide the model's {num_attention_heads} attention heads; choose one of "
            f"{', '.join(map(str, fitting))}"
        )


def check_names(arguments: dict[str, Any]) -> None:
    """Raises ConfigError, with the nearest name, for an argument that the installed SGLang does not have.

    And for the one that would run what stands in the model's folder.
    """
    if not arguments:
        return
    if arguments.get("trust_remote_code"):
        raise ConfigError(
            "rollout.sglang.trust_remote_code = true: code of a model's folder is never run, by no part of a run. "
            "Remove it; the supported models need none"
        )
    from sglang.srt.server_args import ServerArgs  # seconds and some 400 MB

    known = set(ServerArgs.__struct_fields__)
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"rollout.sglang.{name}: the installed SGLang has no such argument{hint}")
