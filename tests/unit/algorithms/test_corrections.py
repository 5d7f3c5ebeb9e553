"""Corrections of rollouts: weights by hand, the loss and metrics that they give, and a planted mismatch.

Derivation of the last: with tokens v drawn from the engine's q, the mean of w A grad(log p) is sum over v of q w A
grad(log p). With w = p / q it is the gradient under p; with w = 1 it is biased by the mismatch, and with w =
min(p / q, cap) by what lies above the cap alone.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hybridflow.algorithms.objective import TokenBatch, build_objective
from hybridflow.algorithms.reductions import build_update_metrics
from hybridflow.algorithms.registry import CORRECTIONS
from hybridflow.algorithms.spec import policy_spec
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.rollout_correction_section import RolloutCorrectionSection
from hybridflow.errors import ProtocolError
from megatron_ext.packing.rows import Rows

F64 = torch.float64
RATIOS = [[1.0, 3.0, 0.4], [1.0, 1e-5], [8.0, 0.125, 1.0, 1.0]]
ADVANTAGES = [-1.0, 1.0, -2.0]
NEW_RATIOS = [[0.99, 0.99, 0.99], [0.5, 0.5], [1.0, 1.0, 1.0, 1.0]]
"""Ratios of the policy in update to the one before it."""
OFF_POLICY = {"off_policy_delta": 1e-4, "off_policy_against": "trainer"}


def make_tokens(order: tuple[int, ...] = (0, 1, 2)) -> TokenBatch:
    """Three sequences in the order given; the trainer's log-probabilities before the update are -2."""
    flat = {
        name: torch.tensor(list(itertools.chain.from_iterable(values[row] for row in order)), dtype=F64)
        for name, values in {
            "ratio": RATIOS,
            "new": NEW_RATIOS,
            "advantages": [[a] * len(r) for a, r in zip(ADVANTAGES, RATIOS, strict=True)],
            "first": [[1.0] + [0.0] * (len(r) - 1) for r in RATIOS],
        }.items()
    }
    old_N = torch.full_like(flat["ratio"], -2.0)
    columns = {
        "old_logprobs": old_N,
        "rollout_logprobs": old_N - flat["ratio"].log(),
        "advantages": flat["advantages"],
        "first": flat["first"],
        "share": torch.tensor([1 / len(RATIOS[row]) for row in order for _ in RATIOS[row]], dtype=F64),
        "staleness": torch.zeros_like(old_N),
        "entropy": torch.zeros_like(old_N),
    }
    rows = Rows.of([len(RATIOS[row]) for row in order], list(order), [0, 0, 0])
    return TokenBatch((old_N + flat["new"].log()).requires_grad_(), columns, rows)


def corrected(correction: dict[str, Any], **keys: Any) -> AlgorithmSection:
    return AlgorithmSection(rollout_correction=RolloutCorrectionSection(**correction), **keys)


WEIGHTS: list[tuple[dict[str, Any], list[list[float]]]] = [
    ({"token_weight": "tis"}, [[1.0, 2.0, 0.4], [1.0, 1e-5], [2.0, 0.125, 1.0, 1.0]]),
    ({"token_weight": "tis", "tis_cap": 4.0}, [[1.0, 3.0, 0.4], [1.0, 1e-5], [4.0, 0.125, 1.0, 1.0]]),
    ({"token_weight": "icepop"}, [[1.0, 3.0, 0.0], [1.0, 0.0], [0.0, 0.0, 1.0, 1.0]]),
    (
        {"token_weight": "icepop", "icepop_low": 0.3, "icepop_high": 2.5},
        [[1.0, 0.0, 0.4], [1.0, 0.0], [0.0, 0.0, 1.0, 1.0]],
    ),
    # Geometric means: 1.2^(1/3) = 1.063, 1e-5^(1/2) = 0.003, 1.
    ({"geometric_low": 0.9, "geometric_high": 1.05}, [[0.0] * 3, [0.0] * 2, [1.0] * 4]),
    ({"geometric_low": 0.9}, [[1.0] * 3, [0.0] * 2, [1.0] * 4]),
    ({"geometric_high": 1.05}, [[0.0] * 3, [1.0] * 2, [1.0] * 4]),
    ({"outlier_low": 1e-4}, [[1.0] * 3, [0.0] * 2, [1.0] * 4]),
    ({"outlier_low": 1e-6, "outlier_high": 5.0}, [[1.0] * 3, [1.0] * 2, [0.0] * 4]),
    # Mean log(old / new): 0.01005 where the advantage is -1, 0.69 where it is 1, 0 where it is -2.
    (OFF_POLICY, [[0.0] * 3, [1.0] * 2, [1.0] * 4]),
    (OFF_POLICY | {"off_policy_delta": 0.02}, [[1.0] * 3, [1.0] * 2, [1.0] * 4]),
    # Of the engine: log(1 / 1.2) / 3 + 0.01005 = -0.0507 for the first; of the third, 0.
    ({"off_policy_delta": 1e-4}, [[1.0] * 3, [1.0] * 2, [1.0] * 4]),
    ({"token_weight": "tis", "outlier_low": 1e-4, **OFF_POLICY}, [[0.0] * 3, [0.0] * 2, [2.0, 0.125, 1.0, 1.0]]),
]


@pytest.mark.parametrize(("keys", "expected"), WEIGHTS, ids=[str(keys) for keys, _ in WEIGHTS])
def test_weights_by_hand_in_any_order_of_rows(keys: dict[str, Any], expected: list[list[float]]) -> None:
    section = RolloutCorrectionSection(**keys)
    parts = CORRECTIONS.build_all(section.parts, section.model_dump())
    for order in ((0, 1, 2), (2, 0, 1)):
        tokens = make_tokens(order)
        weight_N = math.prod((part(tokens).weight_N for part in parts), start=torch.ones((), dtype=F64))
        assert weight_N.tolist() == pytest.approx([w for row in order for w in expected[row]], rel=1e-12)
        assert not weight_N.requires_grad


def test_of_the_engine_off_policy_holds_mismatch_and_update() -> None:
    """A mean log(engine / policy in update) of 0.0201 with old equal to new: half of it is above 1e-2, all of 1e-4."""
    old_N = torch.tensor([-1.0, -1.0], dtype=F64)
    tokens = TokenBatch(
        old_N,
        {"rollout_logprobs": old_N + 0.0201, "old_logprobs": old_N, "advantages": torch.tensor([-1.0, -1.0])},
        Rows.of([2], [0], [0]),
    )
    for delta, against, weight in ((1e-2, "engine", 0.0), (3e-2, "engine", 1.0), (1e-4, "trainer", 1.0)):
        (part,) = CORRECTIONS.build_all(["off_policy"], {"off_policy_delta": delta, "off_policy_against": against})
        assert part(tokens).weight_N.tolist() == [weight, weight]
        assert set(part.columns) == {"advantages", "rollout_logprobs" if against == "engine" else "old_logprobs"}


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_weights_multiply_the_policy_loss_alone_and_leave_the_denominator(aggregation: Any) -> None:
    """With an entropy bonus, whose gradient stays; of a sequence that is masked no gradient of the policy's is left."""
    keys = {"aggregation": aggregation, "clip_low": 0.99, "entropy_coefficient": 0.5}
    correction: Any = {"token_weight": "tis", "outlier_low": 1e-4}
    tokens, plain_tokens = make_tokens(), make_tokens()
    for batch in (tokens, plain_tokens):
        batch.columns["entropy"].requires_grad_()
    sums = build_objective(policy_spec(corrected(correction, **keys)))(tokens)
    plain = build_objective(policy_spec(AlgorithmSection(**keys)))(plain_tokens)
    assert sums.denominator == plain.denominator == (9 if aggregation == "token_mean" else 3)
    sums.loss.backward()
    plain.loss.backward()
    weights = torch.tensor([1.0, 2.0, 0.4, 0.0, 0.0, 2.0, 0.125, 1.0, 1.0], dtype=F64)
    grad_N, plain_N = tokens.logprobs_N.grad, plain_tokens.logprobs_N.grad
    assert grad_N is not None and plain_N is not None and plain_N[[3, 4]].abs().min() > 0
    torch.testing.assert_close(grad_N, weights * plain_N, rtol=1e-12, atol=0)
    torch.testing.assert_close(tokens.columns["entropy"].grad, plain_tokens.columns["entropy"].grad)


def test_where_everything_is_masked_the_loss_is_zero_and_the_denominator_stays() -> None:
    section = corrected({"geometric_low": 0.9999, "geometric_high": 1.00001, **OFF_POLICY})
    tokens = make_tokens((0,))
    tokens.columns["advantages"].fill_(1.0)
    sums = build_objective(policy_spec(section))(tokens)
    sums.loss.backward()
    assert (sums.loss.item(), sums.denominator) == (0.0, 3)
    assert tokens.logprobs_N.grad is not None and not tokens.logprobs_N.grad.any()


def test_metrics_over_micro_batches_of_any_size() -> None:
    """TIS and the mask of outliers: weights 1, 2, 0.4; 0, 0; 2, 0.125, 1, 1: sum 7.525, of squares 11.175625."""
    section = corrected({"token_weight": "tis", "outlier_low": 1e-4})
    objective = build_objective(policy_spec(section), is_first_pass=False)
    for packing in ([(0, 1, 2)], [(2, 1), (0,)], [(0,), (1,), (2,)]):
        reduced = [objective(make_tokens(order)).metrics for order in packing]
        sums = {name: math.fsum(float(one.sums[name]) for one in reduced) for name in reduced[0].sums}
        maxima = {name: max(float(one.maxima[name]) for one in reduced) for name in reduced[0].maxima}
        found = build_update_metrics(objective.metrics, sums, maxima, num_ages=1)
        of_correction = {name: (m.value, m.num_tokens) for name, m in found.items() if name.startswith("correction/")}
        assert of_correction == {
            "correction/weight_mean": (pytest.approx(7.525 / 9), 9),
            "correction/effective_sample_size": (pytest.approx(7.525**2 / 11.175625 / 9), 9),
            "correction/masked_fraction": (pytest.approx(2 / 9), 9),
            "correction/masked_sequence_fraction": (pytest.approx(1 / 3), 3),
            "correction/capped_fraction": (pytest.approx(2 / 9), 9),
            "correction/capped_sequence_fraction": (pytest.approx(2 / 3), 3),
        }
        assert {found[name].kind for name in of_correction} == {"mean"}


def test_off_by_default() -> None:
    spec = policy_spec(AlgorithmSection())
    assert spec.corrections == []
    assert not [name for name in build_objective(spec).metrics if name.startswith("correction/")]


def test_rows_are_needed() -> None:
    tokens = make_tokens()
    for names in (["tis"], ["icepop"], ["outlier"]):
        spec = policy_spec(corrected({"outlier_low": 0.1}))
        spec.corrections[:] = names
        with pytest.raises(ProtocolError, match="needs the rows"):
            build_objective(spec)(TokenBatch(tokens.logprobs_N, tokens.columns))


NUM_DRAWS, TOKENS_PER_DRAW = 1000, 32


def expected_gradient(correction: dict[str, Any], policy_V: Tensor, engine_V: Tensor, drawn_N: Tensor) -> Tensor:
    """[V] gradient of the loss by the policy's logits: the mean over all draws."""
    leaf_V = policy_V.clone().requires_grad_()
    logprobs_N = leaf_V.log_softmax(0)[drawn_N]
    number = drawn_N.numel()
    columns = {
        "advantages": advantages_of(policy_V)[drawn_N],
        "old_logprobs": logprobs_N.detach(),
        "rollout_logprobs": engine_V.log_softmax(0)[drawn_N],
        "first": torch.ones(number, dtype=F64),
    }
    spec = policy_spec(corrected(correction))
    spec.measures.clear()
    sums = build_objective(spec)(TokenBatch(logprobs_N, columns, Rows.of([1] * number, range(number), [0] * number)))
    (sums.loss / sums.denominator).backward()
    assert leaf_V.grad is not None
    return leaf_V.grad


def advantages_of(policy_V: Tensor) -> Tensor:
    """[V] rewards of each token minus their mean under the policy."""
    reward_V = torch.randn(policy_V.numel(), generator=torch.Generator().manual_seed(99), dtype=F64)
    return reward_V - (policy_V.softmax(0) * reward_V).sum()


@pytest.mark.parametrize("seed", range(4))
def test_tis_takes_two_thirds_of_the_bias_of_a_planted_mismatch(seed: int) -> None:
    """A policy over 12 tokens, and an engine whose logits are off by half a nat: 1,000 draws of 32 tokens each."""
    generator = torch.Generator().manual_seed(seed)
    policy_V = torch.randn(12, generator=generator, dtype=F64)
    engine_V = policy_V + 0.5 * torch.randn(12, generator=generator, dtype=F64)
    drawn_N = torch.multinomial(engine_V.softmax(0), NUM_DRAWS * TOKENS_PER_DRAW, replacement=True, generator=generator)
    matched_V = -policy_V.softmax(0) * advantages_of(policy_V)  # sum over v of p A (p - [v]), with a mean A of 0
    biases = {
        name: (expected_gradient(keys, policy_V, engine_V, drawn_N) - matched_V).norm() / matched_V.norm()
        for name, keys in {"none": {}, "tis": {"token_weight": "tis"}, "icepop": {"token_weight": "icepop"}}.items()
    }
    print(f"bias of the gradient by correction, seed {seed}: { ({k: round(v.item(), 4) for k, v in biases.items()}) }")
    assert biases["none"] > 0.15
    assert biases["tis"] <= biases["none"] / 3
