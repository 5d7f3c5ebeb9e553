"""The supervised loss that weighs sequences alike, by hand."""

from __future__ import annotations

import pytest
import torch

from hybridflow.algorithms.objective import build_objective
from hybridflow.algorithms.spec import supervised_spec
from hybridflow.recording.metrics import build_update_line, build_update_metrics
from hybridflow.trainer.batch import pack_rank
from hybridflow.trainer.policy_update import LossCallback, build_update_report
from hybridflow.types import TokenColumns, TrainBatch, TrainSequence
from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.policy import TrainStepResult

OBJECTIVE = build_objective(supervised_spec("sequence_mean"))
SEQUENCE_MEAN = LossCallback(OBJECTIVE)


def packed(rows: list[TrainSequence], plan: list[list[list[int]]], dp_rank: int = 0) -> list[MicroBatch]:
    batch = TrainBatch(sequences=rows, plan=[plan], temperature=1.0)
    return pack_rank(batch, dp_rank, OBJECTIVE.columns)


def row(name: str, mask: list[int]) -> TrainSequence:
    response = TokenColumns(ids=[3] * len(mask))
    return TrainSequence(sequence_id=name, prompt_token_ids=[1, 2], response=response, loss_mask=mask)


def test_by_hand() -> None:
    """Rows with 1 and 3 counted tokens: (2 + (1 + 4 + 4) / 3) / 2 sequences = 2.5, not 11 / 4 tokens."""
    rows = [row("a", [0, 1]), row("b", [1, 1, 0, 1])]
    (batch,) = packed(rows, [[[0, 1]]])
    sums = SEQUENCE_MEAN(torch.tensor([-2.0, -1.0, -4.0, -4.0]), None, batch)
    assert sums.loss.item() == pytest.approx(5.0)
    assert int(sums.num_tokens) == 2
    assert {name: value.item() for name, value in sums.metrics.items()} == {"policy/nll": 11.0, "tokens": 4.0}


def test_a_report_tells_the_tokens_beside_the_denominator() -> None:
    """The rows of `test_by_hand`: a mean over two sequences, of four tokens."""
    sums = {"policy/nll": 11.0, "tokens": 4.0}
    step = TrainStepResult(loss=2.5, num_tokens=2, sums=sums, maxima={}, grad_norm=1.0, skipped=False)
    report = build_update_report(step, OBJECTIVE)
    assert (report.num_tokens, report.num_response_tokens) == (2, 4)
    assert build_update_line(report)["train/response_tokens"] == build_update_metrics([report])["train/response_tokens"]
    assert build_update_line(report)["train/response_tokens"] == 4


def test_a_rank_without_rows_adds_nothing() -> None:
    batches = packed([row("a", [1])], [[[0]], [[]]], 1)
    sums = SEQUENCE_MEAN(torch.zeros(0), None, batches[0])
    assert sums.loss.item() == 0 and int(sums.num_tokens) == 0


def test_sequences_are_counted_once_however_they_are_cut() -> None:
    """Any split of the predicted positions, as context parallelism makes, gives the same sums."""
    (batch,) = packed([row("a", [1] * 4), row("b", [1] * 3)], [[[0, 1]]])
    logprobs = -torch.arange(1.0, 8.0)
    whole = SEQUENCE_MEAN(logprobs, None, batch)
    parts = []
    for positions in ([0, 5, 6], [1, 2, 3, 4]):
        inputs = {name: value[positions] for name, value in batch.loss_inputs.items()}
        part = type(batch)(**{**vars(batch), "loss_inputs": inputs})
        parts.append(SEQUENCE_MEAN(logprobs[positions], None, part))
    assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item())
    assert sum(int(part.num_tokens) for part in parts) == int(whole.num_tokens) == 2
