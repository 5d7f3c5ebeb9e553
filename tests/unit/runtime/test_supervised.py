"""The supervised stage of `train` and `sft`."""

from __future__ import annotations

from typing import Any

import pytest

from hybridflow.runtime.supervised import SupervisedStage, SupervisedStep, train_supervised
from hybridflow.types import TokenColumns, TrainBatch, TrainSequence, UpdateReport
from megatron_ext.optimizer.lr import LRSchedule

PEAK = 3.7e-4


class Workers:
    """Note what they are asked for; `events` is shared with who builds batches."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.rates: list[float] = []

    def build_batch(self, step: int) -> TrainBatch:
        self.events.append(f"build {step}")
        row = TrainSequence(
            sequence_id=str(step), prompt_token_ids=[1], response=TokenColumns(ids=[2] * step), loss_mask=[1] * step
        )
        return TrainBatch(sequences=[row], plan=[], temperature=1.0)

    def start_sft_step(self, batch: TrainBatch, learning_rate: float, per_sequence: bool = False) -> Any:
        self.rates.append(learning_rate)
        step = batch.sequences[0].sequence_id
        self.events.append(f"start {step}{' per sequence' if per_sequence else ''}")
        return step

    def finish_sft_step(self, handle: Any) -> UpdateReport:
        self.events.append(f"finish {handle}")
        return UpdateReport(loss=float(handle), grad_norm=1.0, num_tokens=1, num_response_tokens=1, num_skipped=0)

    def train(self, num_steps: int, *, steps_done: int = 0, warmup: int = 0, per_sequence: bool = False) -> list[Any]:
        stage = SupervisedStage(num_steps, LRSchedule(PEAK, warmup_steps=warmup), self.build_batch, per_sequence)
        done: list[SupervisedStep] = []
        train_supervised(
            stage, self, done.append, steps_done=steps_done, begin=lambda step: self.events.append(f"begin {step}")
        )
        return done


def test_the_next_batch_is_built_while_the_workers_compute() -> None:
    workers = Workers()
    done = workers.train(2, per_sequence=True)
    assert workers.events == [
        *["build 1", "begin 1", "start 1 per sequence", "build 2", "finish 1"],
        *["begin 2", "start 2 per sequence", "finish 2"],
    ]
    assert [(step.number, step.num_tokens, step.learning_rate) for step in done] == [(1, 2, PEAK), (2, 3, PEAK)]
    assert done[1].metrics() == {"policy/loss": 2.0, "policy/grad_norm": 1.0, "train/skipped": 0.0}


def test_a_resumed_stage_does_the_steps_that_are_left() -> None:
    workers = Workers()
    assert [step.number for step in workers.train(4, steps_done=3)] == [4]
    assert workers.events == ["build 4", "begin 4", "start 4", "finish 4"]
    assert workers.train(4, steps_done=4) == [] and len(workers.events) == 4


@pytest.mark.parametrize("warmup", [0, 1, 3, 20])
def test_the_rate_rises_to_its_peak_as_it_always_did_to_the_bit(warmup: int) -> None:
    workers = Workers()
    workers.train(7, warmup=warmup)
    assert workers.rates == [PEAK * min(1.0, step / max(warmup, 1)) for step in range(1, 8)]
