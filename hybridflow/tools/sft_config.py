"""The configuration of `hybridflow sft`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hybridflow.config.paths import InputPath
from hybridflow.config.sections import (
    CheckpointSection,
    ClusterSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    Section,
    TrackingSection,
    WorkerSection,
)


class SftDataSection(Section):
    """The demonstrations."""

    path: InputPath
    """Parquet or JSONL: rows with `messages`, or DocQA-RL rows with `response` or a gold answer."""
    max_tokens: int = Field(default=16_384, ge=2)
    """Longest conversation, prompt and answer together."""
    overlong: Literal["error", "drop"] = "error"
    """Treatment of a conversation above `data.max_tokens`."""


class SftTrainSection(WorkerSection):
    """Length, loss and optimizer. Defaults are those of QwenLong-L1's warm-up (arXiv 2505.17667)."""

    num_epochs: int = Field(default=3, ge=1)
    """Times that every demonstration is learnt."""
    num_steps: int | None = Field(default=None, ge=1)
    """Given, it decides the length instead of `num_epochs`."""
    sequences_per_step: int = Field(default=128, ge=1)
    """Demonstrations of one optimizer step."""
    learning_rate: float = Field(default=5e-6, gt=0)
    """Peak, after `train.lr_warmup_steps`."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the rate after the warm-up; the decays end at the last step."""
    lr_min_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of `train.learning_rate` that a decay ends at."""
    loss: Literal["sequence_mean", "token_mean"] = "sequence_mean"
    """Every conversation counts alike, or every token."""
    optimizer: OptimizerSection = OptimizerSection(beta2=0.999)


class SftConfig(Section):
    """A supervised run."""

    run: RunSection = RunSection(name="sft")
    model: ModelSection
    data: SftDataSection
    train: SftTrainSection = SftTrainSection()
    checkpoint: CheckpointSection = CheckpointSection(every_steps=50)
    tracking: TrackingSection = TrackingSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _check_across_sections(self) -> SftConfig:
        if self.data.max_tokens > self.train.max_tokens_per_micro_batch:
            raise ValueError(
                f"data.max_tokens ({self.data.max_tokens}) is above train.max_tokens_per_micro_batch "
                f"({self.train.max_tokens_per_micro_batch}). Remedy: raise the budget or lower the window"
            )
        return self

    def total_steps(self, num_sequences: int) -> int:
        """Optimizer steps of the run on that many demonstrations; the last step may begin another epoch."""
        if self.train.num_steps is not None:
            return self.train.num_steps
        return -(-self.train.num_epochs * num_sequences // self.train.sequences_per_step)
