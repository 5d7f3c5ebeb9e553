"""`[cluster]`: the processes of a run, and how they reach each other."""

from __future__ import annotations

import ipaddress
from typing import Any

from pydantic import Field, field_validator

from hybridflow.config.section import Section
from hybridflow.environment import names_secret


class StallSection(Section):
    """Seconds without any sign of life after which a phase is taken for stalled: what stands still is named with its
    stack, and 30 s later the run ends, resumable."""

    rollout_s: float = Field(default=1200.0, gt=0)
    """Decoding and scoring of a step: no completion, no verdict, no token of an engine."""
    train_s: float = Field(default=1200.0, gt=0)
    """Optimizer steps of an RL step: no micro-batch was finished."""
    measure_s: float = Field(default=1200.0, gt=0)
    """A forward pass over a step's rows before rewards and advantages are made of it (KL in the reward, AEPO)."""
    reference_s: float = Field(default=1200.0, gt=0)
    """The reference's forward pass over them, and the writing and reading of its weights."""
    sync_s: float = Field(default=1200.0, gt=0)
    """Publishing of weights: no worker went on to another round."""
    hand_over_s: float = Field(default=1200.0, gt=0)
    """Memory changes hands between trainer and engines."""
    eval_s: float = Field(default=1200.0, gt=0)
    """Evaluation: as `rollout_s`."""
    difficulty_s: float = Field(default=1200.0, gt=0)
    """Measuring of a phase's prompts before its first step: as `rollout_s`."""
    warmup_s: float = Field(default=1200.0, gt=0)
    """Supervised stages: no step was finished."""
    checkpoint_s: float = Field(default=1800.0, gt=0)
    """Saving of a checkpoint."""
    export_s: float = Field(default=1800.0, gt=0)
    """Writing of the final model."""

    def limits(self) -> dict[str, float]:
        """By phase."""
        return {name.removesuffix("_s"): limit for name, limit in self.model_dump().items()}


class ClusterSection(Section):
    """The processes of a run."""

    environment: dict[str, str | bool] = Field(default_factory=dict)
    """Environment of train workers, engines and reward workers: variables with their values, or `true` for the value
    that they have where the run is started; a list of names is a table of `true`. They get paths, locale, proxies,
    thread limits and what CUDA, NCCL, torch, SGLang and Ray are set by anyway, and no token of their user."""
    network: str = ""
    """Network over which nodes speak, such as "10.1.0.0/16": each listens on its address in it, and on no other. Empty:
    on the address by which Ray knows the node. On one machine all is on the loopback, or in a folder of this user."""

    stall: StallSection = StallSection()
    """Deadlines of the watchdog, by phase."""

    @field_validator("environment", mode="before")
    @classmethod
    def _read_environment(cls, given: Any) -> Any:
        if isinstance(given, list) and all(isinstance(name, str) for name in given):
            return dict.fromkeys(given, True)
        if not isinstance(given, dict):
            raise ValueError(f"{given!r} is no table of variables. Remedy: write environment = {{ NAME = 'value' }}")
        for name, value in given.items():
            if value is False:
                raise ValueError(f"{name} = false would be the text 'false' or nothing. Remedy: remove it, or quote it")
            if value is not True and names_secret(name):
                raise ValueError(
                    f"{name} would stand in the run folder with its value. Remedy: export it, and write {name} = true"
                )
        return {name: value if value is True else str(value) for name, value in given.items()}

    @field_validator("network")
    @classmethod
    def _check_network(cls, network: str) -> str:
        try:
            if network:
                ipaddress.ip_network(network)
        except ValueError as error:
            raise ValueError(f"{error}. Remedy: write the network of the nodes, such as 10.1.0.0/16") from error
        return network
