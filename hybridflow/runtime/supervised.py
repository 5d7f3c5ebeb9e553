"""The supervised stage: the warm-up of `train` and the whole of `sft`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hybridflow.protocols import SupervisedTrainer
from hybridflow.types import TrainBatch, UpdateReport
from megatron_ext.optimizer.lr import LRSchedule, learning_rate


@dataclass(frozen=True)
class SupervisedStage:
    """A supervised stage: what is trained on, how long and at which rate."""

    num_steps: int
    schedule: LRSchedule
    build_batch: Callable[[int], TrainBatch]
    """Conversations of a step, counted from 1."""
    per_sequence: bool = False
    """Every conversation counts alike; else every token."""


@dataclass(frozen=True)
class SupervisedStep:
    """A step that is done."""

    number: int
    """From 1."""
    report: UpdateReport
    learning_rate: float
    num_tokens: int
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Loss and gradient, under the names of metrics.jsonl."""
        return {
            "policy/loss": self.report.loss,
            "policy/grad_norm": self.report.grad_norm,
            "train/skipped": float(self.report.num_skipped),
        }


def train_supervised(
    stage: SupervisedStage,
    trainer: SupervisedTrainer,
    record: Callable[[SupervisedStep], None],
    *,
    steps_done: int = 0,
    begin: Callable[[int], None] = lambda step: None,
) -> None:
    """Trains the steps that are left; the next batch is built while the workers compute.

    `begin` is called with the number of each step before it starts, `record` with what came of it.
    """
    batch = stage.build_batch(steps_done + 1) if steps_done < stage.num_steps else None
    for step in range(steps_done + 1, stage.num_steps + 1):
        assert batch is not None
        begin(step)
        started, rate = time.monotonic(), learning_rate(stage.schedule, step)
        handle = trainer.start_sft_step(batch, rate, stage.per_sequence)
        num_tokens = sum(sequence.num_tokens for sequence in batch.sequences)
        batch = stage.build_batch(step + 1) if step < stage.num_steps else None
        report = trainer.finish_sft_step(handle)
        record(SupervisedStep(step, report, rate, num_tokens, time.monotonic() - started))
