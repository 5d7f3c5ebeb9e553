"""Opening of engines: their settings, and their actors in their slots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ray

from hybridflow.cluster.gpu_reservations import reserve_gpus
from hybridflow.cluster.session import Slots
from hybridflow.config.rollout_section import RolloutSection
from hybridflow.policy.engine_tokenizer import ENGINE_TOKENIZER
from hybridflow.rollout.driver.engine_handle import EngineHandle
from hybridflow.rollout.engine.actor import RolloutWorker
from hybridflow.rollout.engine.arguments import build_arguments, engine_environment
from hybridflow.wire.endpoint import Endpoint

SLOT_SHARE = 0.4
"""Part of a slot that a rank of an engine takes beside the train worker of the slot."""
CONCURRENCY = 6
"""Methods of an engine's actor that may run at once: two loads of buckets, status, submit, abort and one spare."""


@dataclass(frozen=True)
class RolloutSettings:
    """Settings under which engines are opened."""

    section: RolloutSection
    dtype: str
    seed: int
    initial_version: int | None = None
    """Version under which the weights of the model directory count as confirmed; None: weights are published."""

    tells_experts: bool = False
    """Engines can say which experts they chose."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of its processes, above their own."""

    @property
    def num_slots(self) -> int:
        return self.section.num_engines * self.section.tp_size


def create_handle(
    index: int,
    settings: RolloutSettings,
    slots: Slots,
    own: Sequence[int],
    hf_dir: Path,
    endpoint: Endpoint,
    log_directory: Path,
) -> EngineHandle:
    """Starts engine `index`; its ranks are in the slots `own`, its actor in the first. Completions go to `endpoint`."""
    section, name = settings.section, f"engine-{index}"
    reservations = reserve_gpus(slots, own[1:], SLOT_SHARE)  # they stay when the engine is started again
    variables = engine_environment(section, index, has_cuda=slots.has_cuda) | dict(settings.environment)
    options = ray.remote(RolloutWorker).options(
        num_cpus=SLOT_SHARE,
        num_gpus=SLOT_SHARE * slots.gpus_per_slot,
        scheduling_strategy=slots.strategy(own[0]),
        runtime_env={"env_vars": variables},
        max_restarts=0,
        max_concurrency=CONCURRENCY,
    )
    tokenizer = {"tokenizer_path": str(hf_dir / ENGINE_TOKENIZER)}
    arguments = tokenizer | build_arguments(
        section,
        dtype=settings.dtype,
        seed=settings.seed,
        has_cuda=slots.has_cuda,
        tells_experts=settings.tells_experts,
    )
    log = str(log_directory / f"{name}.log")
    opened = (name, str(hf_dir), arguments, settings.seed, endpoint, log, settings.initial_version)
    given = (*opened, index, section.verify_weights, reservations)
    return EngineHandle(
        name,
        lambda: options.remote(*given),
        heartbeat_s=section.heartbeat_s,
        hang_timeout_s=section.hang_timeout_s,
        start_timeout_s=section.start_timeout_s,
        initial_version=settings.initial_version,
    )
