"""Engines that would not tell the experts they chose are refused with both keys, their values and the remedy."""

from __future__ import annotations

import pytest

from hybridflow.config.conflicts import SECTIONS_ALONE
from hybridflow.config.routing_rules import find_routing_conflicts
from hybridflow.config.sections import Config


def config_of(replay: str, sglang: dict[str, object]) -> Config:
    fields = {"model": {"path": "m"}, "algorithm": {"routing_replay": replay}, "rollout": {"sglang": sglang}}
    return Config.model_validate(fields, context=SECTIONS_ALONE)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("enable_return_routed_experts", False, "engines would note no experts"),
        ("speculative_algorithm", "EAGLE", "of drafted tokens no experts are noted"),
        ("pp_size", 2, "each rank of a pipeline notes its own layers only"),
        ("enable_hierarchical_cache", True, "keys and values that come back from the host come without experts"),
        ("chunked_prefill_size", -1, "the buffer for the experts of a batch would be too small for a prompt"),
        ("moe_runner_backend", "triton_kernel", "its kernels choose experts without telling"),
    ],
)
def test_an_engine_that_does_not_tell_is_refused(key: str, value: object, why: str) -> None:
    (message,) = find_routing_conflicts(config_of("engine", {key: value}))
    assert message == (
        f'algorithm.routing_replay is "engine" and rollout.sglang.{key} is {value!r}: {why}. Remedy: remove '
        f'rollout.sglang.{key}, or set algorithm.routing_replay = "off"'
    )
    assert not list(find_routing_conflicts(config_of("off", {key: value})))


def test_other_engines_are_fine() -> None:
    fine = {
        "enable_return_routed_experts": True,
        "pp_size": 1,
        "chunked_prefill_size": 64,
        "moe_runner_backend": "triton",
        "log_level": "info",
    }
    assert not list(find_routing_conflicts(config_of("engine", fine)))
