"""Losses and aggregations together, against objectives written from the papers, row by row, in float64.

A reference gets rows (logprobs, old ones, advantage) and gives -J, whose gradient autograd finds. The code gets the
same rows as packed micro-batches and gives sums, which are divided once. Cannot catch: a wrong column, or a wrong sum
over ranks, which tests/dist_cpu holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from hybridflow.algorithms.objective import TokenBatch, build_objective
from hybridflow.algorithms.registry import AGGREGATIONS, TERMS
from hybridflow.algorithms.spec import ObjectiveSpec
from hybridflow.config.algorithm_parts import AVERAGES_SEQUENCES, OF_SEQUENCES, PARAMETERS
from hybridflow.errors import ConfigError, ProtocolError
from hybridflow.trainer.batch import pack_rank
from hybridflow.types import TokenColumns, TrainBatch, TrainSequence
from megatron_ext.packing.rows import Rows

F64 = torch.float64
LOW, HIGH, DUAL, LONGEST, POS, NEG = 0.2, 0.28, 2.0, 6, 1.5, 2.5
SETTINGS = {
    "clip_low": LOW, "clip_high": HIGH, "clip_dual": DUAL, "normaliser_tokens": LONGEST, "tau_pos": POS, "tau_neg": NEG
}  # fmt: skip


class Row(NamedTuple):
    logprobs_T: Tensor
    old_T: Tensor
    advantage: float


def make_rows(seed: int, width: float = 0.4) -> list[Row]:
    """Eight rows of 1 to 6 tokens; the log ratio of a token varies by `width`."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number, length in enumerate([3, 1, 6, 2, 5, 4, 1, 2]):
        old_T = -3 * torch.rand(length, generator=draw, dtype=F64)
        moved_T = width * torch.randn(length, generator=draw, dtype=F64)
        advantage = torch.randn(1, generator=draw, dtype=F64).item()
        rows.append(Row((old_T + moved_T).requires_grad_(), old_T, 0.0 if number == 3 else advantage))
    return rows


def clip(ratio: Tensor) -> Tensor:
    return torch.clamp(ratio, 1 - LOW, 1 + HIGH)


def surrogate(row: Row) -> Tensor:
    """[T] min(r A, clip(r) A)."""
    ratio_T = (row.logprobs_T - row.old_T).exp()
    return torch.minimum(ratio_T * row.advantage, clip(ratio_T) * row.advantage)


def dual_surrogate(row: Row) -> Tensor:
    return (
        torch.maximum(surrogate(row), row.old_T.new_tensor(DUAL * row.advantage))
        if row.advantage < 0
        else surrogate(row)
    )


def sequence_surrogate(row: Row) -> Tensor:
    ratio = (row.logprobs_T - row.old_T).mean().exp()
    return torch.minimum(ratio * row.advantage, clip(ratio) * row.advantage)


def weighted(row: Row) -> Tensor:
    return clip((row.logprobs_T - row.old_T).exp()).detach() * row.advantage * row.logprobs_T


def gated(row: Row) -> Tensor:
    tau = POS if row.advantage > 0 else NEG
    ratio_T = (row.logprobs_T - row.old_T).exp()
    return 4 / (tau * (1 + torch.exp(-tau * (ratio_T - 1)))) * row.advantage


PER_TOKEN: dict[str, Callable[[Row], Tensor]] = {
    "clip": surrogate, "dual_clip": dual_surrogate, "cispo": weighted, "sapo": gated
}  # fmt: skip


def reference(loss: str, aggregation: str, rows: list[Row]) -> Tensor:
    """-J of the step: 1 / sum |y| over tokens, 1 / n of means over sequences, or 1 / n of sums over a constant."""
    if loss == "gspo":
        return -torch.stack([sequence_surrogate(row) for row in rows]).mean()
    values = [PER_TOKEN[loss](row) for row in rows]
    if aggregation == "token_mean":
        return -torch.cat(values).sum() / sum(len(value) for value in values)
    if aggregation == "sequence_mean":
        return -torch.stack([value.mean() for value in values]).mean()
    return -torch.stack([value.sum() / LONGEST for value in values]).mean()


def evaluate(loss: str, aggregation: str, micro_batches: list[list[Row]]) -> tuple[Tensor, dict[str, float]]:
    """(loss of the step, mean of each metric of the loss)."""
    objective = build_objective(ObjectiveSpec(terms=[loss], aggregation=aggregation, parameters=SETTINGS))
    total, denominator = torch.zeros((), dtype=F64), 0.0
    sums: dict[str, float] = {}
    for rows in micro_batches:
        counts = [len(row.old_T) for row in rows]
        found = objective(
            TokenBatch(
                torch.cat([row.logprobs_T for row in rows]),
                {
                    "old_logprobs": torch.cat([row.old_T for row in rows]),
                    "advantages": torch.tensor([row.advantage for row in rows for _ in row.old_T], dtype=F64),
                    "share": torch.tensor([1 / n for n in counts for _ in range(n)], dtype=F64),
                    "first": torch.tensor([float(at == 0) for n in counts for at in range(n)], dtype=F64),
                },
                Rows.of(counts, list(range(len(rows))), [0] * len(rows)),
            )
        )
        total, denominator = total + found.loss, denominator + float(found.denominator)
        sums = {name: sums.get(name, 0.0) + value.double().item() for name, value in found.metrics.sums.items()}
    return total / denominator, {name: value / sums["tokens"] for name, value in sums.items()}


def gradients(loss: Tensor, rows: list[Row]) -> Tensor:
    return torch.cat(torch.autograd.grad(loss, [row.logprobs_T for row in rows]))


PAIRS = [
    (loss, aggregation)
    for loss in PARAMETERS["loss"]
    for aggregation in PARAMETERS["aggregation"]
    if loss not in OF_SEQUENCES or aggregation in AVERAGES_SEQUENCES
]


@pytest.mark.parametrize(("loss", "aggregation"), PAIRS)
def test_value_and_gradient_of_the_papers_objective_however_rows_lie(loss: str, aggregation: str) -> None:
    for width in (0.4, 2.0):
        rows = make_rows(seed=7, width=width)
        expected = reference(loss, aggregation, rows)
        slope = gradients(expected, rows)
        order = [5, 2, 7, 0, 3, 6, 1, 4]
        mixed = [rows[at] for at in order]
        for plan in ([rows], [[row] for row in rows], [mixed[:1], mixed[1:4], mixed[4:]]):
            got, _ = evaluate(loss, aggregation, plan)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(gradients(got, rows), slope, rtol=1e-12, atol=1e-14)
        assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("loss", PARAMETERS["loss"])
def test_on_policy_the_gradient_is_that_of_reinforce(loss: str) -> None:
    """Every ratio is 1, which no clip and no gate touches."""
    rows = [row._replace(logprobs_T=row.old_T.clone().requires_grad_()) for row in make_rows(seed=3)]
    got, metrics = evaluate(loss, "sequence_mean", [rows])
    expected = torch.cat([torch.full_like(row.old_T, -row.advantage / len(row.old_T) / len(rows)) for row in rows])
    torch.testing.assert_close(gradients(got, rows), expected)
    touched = {name: value for name, value in metrics.items() if name.startswith("policy/clip_fraction")}
    assert not any(touched.values()) and metrics.get("policy/gate_mean", 1.0) == pytest.approx(1.0)


def one_row(ratios: list[float], advantage: float, old: float = 0.5) -> list[Row]:
    old_T = torch.tensor([math.log(old)] * len(ratios), dtype=F64)
    return [Row((old_T + torch.tensor(ratios, dtype=F64).log()).requires_grad_(), old_T, advantage)]


@pytest.mark.parametrize(
    ("loss", "ratios", "advantage", "expected", "slope"),
    [
        # A < 0: r until 2, then 2; 0.8 below the lower clip. A > 0: the dual clip has no say.
        ("dual_clip", [1.5, 1.0], -1.0, 1.25, [0.75, 0.5]),
        ("dual_clip", [5.0, 0.5], -1.0, 1.4, [0.0, 0.0]),
        ("dual_clip", [5.0, 1.0], 1.0, -1.14, [0.0, -0.5]),
        # Mean log ratio log 1.2: s = 1.2 is within the clip though 1.44 is not; each token gets s / 2.
        ("gspo", [1.44, 1.0], 1.0, -1.2, [-0.6, -0.6]),
        ("gspo", [4.0, 1.0], 1.0, -1.28, [0.0, 0.0]),
        ("gspo", [4.0, 1.0], -1.0, 2.0, [1.0, 1.0]),
        ("gspo", [0.25, 1.0], -1.0, 0.8, [0.0, 0.0]),
        # Weights 1.28 (clipped from 1.6) and 1: -(1.28 * 2 log 0.8 + 2 log 0.5) / 2; the clipped one keeps a gradient.
        ("cispo", [1.6, 1.0], 2.0, -(1.28 * math.log(0.8) + math.log(0.5)), [-1.28, -1.0]),
        ("cispo", [0.1, 1.0], -1.0, (0.8 * math.log(0.05) + math.log(0.5)) / 2, [0.4, 0.5]),
        # sigmoid(1.5 * 2 ln 3 / 3) = 3/4: 4/1.5 * 3/4 = 2, gate 3/4; and 4/1.5 * 1/2 at r = 1.
        ("sapo", [1 + 2 * math.log(3) / 3, 1.0], 1.0, -(2 + 4 / 3) / 2, [-0.375 * (1 + 2 * math.log(3) / 3), -0.5]),
        ("sapo", [1.0], -2.0, 4 / 2.5, [2.0]),
    ],
)  # fmt: skip
def test_worked_by_hand(loss: str, ratios: list[float], advantage: float, expected: float, slope: list[float]) -> None:
    rows = one_row(ratios, advantage)
    got, _ = evaluate(loss, "sequence_mean", [rows])
    assert got.item() == pytest.approx(expected, rel=1e-12)
    assert gradients(got, rows).tolist() == pytest.approx(slope, rel=1e-12)


def test_metrics_tell_where_clips_were_active() -> None:
    _, dual = evaluate("dual_clip", "token_mean", [one_row([5.0, 0.5, 1.0, 1.5], -1.0)])
    assert (dual["policy/clip_fraction_low"], dual["policy/clip_fraction_dual"]) == (0.25, 0.25)
    _, weights = evaluate("cispo", "token_mean", [one_row([5.0, 0.5, 1.0, 1.5], -1.0)])
    assert (weights["policy/clip_fraction_low"], weights["policy/clip_fraction_high"]) == (0.25, 0.5)
    _, sequences = evaluate("gspo", "sequence_mean", [one_row([4.0, 1.0], 1.0), one_row([1.0], 1.0)])
    assert sequences["policy/clip_fraction_high"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("loss", PARAMETERS["loss"])
def test_an_exploding_ratio_stays_finite(loss: str) -> None:
    for advantage in (1.0, 0.0, -1.0):
        old_T = torch.tensor([-500.0, -500.0], dtype=F64)
        rows = [Row(torch.zeros(2, dtype=F64, requires_grad=True), old_T, advantage)]
        got, _ = evaluate(loss, "sequence_mean", [rows])
        assert torch.isfinite(got) and torch.isfinite(gradients(got, rows)).all()


@pytest.mark.parametrize(("loss", "aggregation"), PAIRS)
def test_masked_tokens_enter_no_sum_and_no_count(loss: str, aggregation: str) -> None:
    """Tokens 7 and 8 of the row are masked; it equals the row that is made of the others."""
    objective = build_objective(ObjectiveSpec(terms=[loss], aggregation=aggregation, parameters=SETTINGS))

    def sums(ids: list[int], mask: list[int]) -> tuple[float, float]:
        row = TrainSequence(
            sequence_id="r", prompt_token_ids=[1], response=TokenColumns(ids=ids), loss_mask=mask, advantage=-1.0
        )
        batch = TrainBatch(sequences=[row], plan=[[[[0]]]], temperature=1.0)
        (micro_batch,) = pack_rank(batch, 0, sorted(set(objective.columns) - {"old_logprobs"}), loss_dtype=F64)
        logprobs_N = -micro_batch.targets_N.double() / 10
        columns = {**micro_batch.loss_inputs, "old_logprobs": logprobs_N * 0.9}
        found = objective(TokenBatch(logprobs_N, columns, micro_batch.rows))
        return found.loss.item(), float(found.denominator)

    assert sums([7, 2, 8, 3], [0, 1, 0, 1]) == pytest.approx(sums([2, 3], [1, 1]), rel=1e-12)


def test_a_loss_of_sequences_takes_no_sum_over_tokens_and_no_tokens_without_rows() -> None:
    for aggregation in ("token_mean", "constant"):
        with pytest.raises(ConfigError, match=f"'gspo' is of whole.*{aggregation!r}.*Remedy"):
            build_objective(ObjectiveSpec(terms=["gspo"], aggregation=aggregation, parameters=SETTINGS))
    spec = ObjectiveSpec(terms=["gspo"], aggregation="sequence_mean", parameters=SETTINGS)
    with pytest.raises(ProtocolError, match="rows"):
        build_objective(spec)(TokenBatch(torch.zeros(1), {"old_logprobs": torch.zeros(1)}))


@pytest.mark.parametrize("number", [None, 0])
def test_a_constant_must_be_there(number: Any) -> None:
    with pytest.raises(ConfigError, match=r"Remedy: set algorithm\.normaliser_tokens"):
        AGGREGATIONS.build("constant", {"normaliser_tokens": number})


def test_columns_and_metrics_are_declared() -> None:
    for loss in PARAMETERS["loss"]:
        part = TERMS.build(loss, SETTINGS)
        assert set(part.columns) == {"advantages", "old_logprobs"} and part.metrics
