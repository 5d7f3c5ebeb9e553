"""Rules of routing replay: settings of engines under which SGLang 0.5.23 does not tell the experts that it chose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridflow.config.sections import Config

REFUSED: dict[str, tuple[tuple[Any, ...] | None, str]] = {
    "enable_return_routed_experts": ((None, True), "engines would note no experts"),
    "speculative_algorithm": ((None,), "of drafted tokens no experts are noted"),
    "pp_size": ((None, 1), "each rank of a pipeline notes its own layers only"),
    "attn_cp_size": ((None, 1), "each context parallel rank notes its own tokens only"),
    "dcp_size": ((None, 1), "each context parallel rank notes its own tokens only"),
    "enable_two_batch_overlap": ((None, False), "the halves of a batch overwrite each other's experts"),
    "disaggregation_mode": ((None, "null"), "another engine computes prompts, and its experts stay there"),
    "enable_hierarchical_cache": ((None, False), "keys and values that come back from the host come without experts"),
    "enable_lmcache": ((None, False), "keys and values from elsewhere come without experts"),
    "enable_flexkv": ((None, False), "keys and values from elsewhere come without experts"),
    "enable_unified_cache_external_linker": ((None, False), "keys and values from elsewhere come without experts"),
    "chunked_prefill_size": (None, "the buffer for the experts of a batch would be too small for a prompt"),
    "moe_runner_backend": (
        (None, "auto", "triton", "cutlass", "deep_gemm"),
        "its kernels choose experts without telling",
    ),
}
"""By key of `rollout.sglang`: the values that are fine (None: numbers above 0), and what is wrong with others."""


def find_routing_conflicts(config: Config) -> Iterator[str]:
    """Gives "<what is wrong, with the values>. Remedy: <what to do>" of each argument that stands in the way."""
    if config.algorithm.routing_replay == "off":
        return
    for key, (fine, why) in REFUSED.items():
        value = config.rollout.sglang.get(key)
        is_fine = value in fine if fine is not None else value is None or (isinstance(value, int) and value > 0)
        if not is_fine:
            yield (
                f'algorithm.routing_replay is "engine" and rollout.sglang.{key} is {value!r}: {why}. Remedy: remove '
                f'rollout.sglang.{key}, or set algorithm.routing_replay = "off"'
            )
