"""Builds the train workers of a run from its configuration."""

from __future__ import annotations

from pathlib import Path

from hybridflow.algorithms.spec import algorithm_spec
from hybridflow.cluster.session import Slots
from hybridflow.config.sections import Config
from hybridflow.environment import given_values
from hybridflow.trainer.group import BROADCAST_ENVIRONMENT, PolicySettings, TrainerGroup


def start_train_workers(config: Config, slots: Slots, log_directory: Path, *, broadcasts: bool = False) -> TrainerGroup:
    """Creates the actors; `setup` makes them ready. `broadcasts`: they will send whole tensors to engines."""
    settings = PolicySettings(
        config.train,
        config.model.dtype,
        config.run.seed,
        config.train.optimizer,
        config.cluster.network,
        force_float32=config.model.force_float32,
        environment=(BROADCAST_ENVIRONMENT if broadcasts else {}) | given_values(config.cluster.environment),
    )
    return TrainerGroup(
        settings,
        slots,
        log_directory,
        objective=algorithm_spec(config).objective,
        num_epochs=config.train.num_updates_per_step,
        bucket_bytes=int(config.rollout.weight_bucket_mib * 2**20),
    )
