"""Estimators against the exact KL of small categorical distributions: values and gradients, in expectation.

The expectation over a drawn token is a sum over all tokens, weighted by the policy that draws (float64, no sampling),
so equality is to rounding. Cannot catch: log-probabilities of other tokens than the drawn ones, which come from the
model.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hybridflow.algorithms.objective import TokenBatch
from hybridflow.algorithms.reference_kl import ReferenceDistance, ReferenceKL, compute_kl_price, estimate_kl

F64 = torch.float64
NUM_TOKENS = 7


def draw_logits(seed: int) -> Tensor:
    return torch.randn(NUM_TOKENS, generator=torch.Generator().manual_seed(seed), dtype=F64)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL of two distributions, given their log-probabilities."""
    return (first.exp() * (first - second)).sum()


def gradient_of(value: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
    return gradient


class Setting:
    """A policy, its reference, and the policy that drew the tokens: itself, or an older one."""

    def __init__(self, *, is_on_policy: bool) -> None:
        self.logits = draw_logits(1).requires_grad_()
        self.policy = self.logits.log_softmax(-1)
        self.reference = draw_logits(2).log_softmax(-1)
        self.old = self.policy.detach() if is_on_policy else (draw_logits(1) + 0.3 * draw_logits(3)).log_softmax(-1)

    def expected(self, estimator: str) -> Tensor:
        """Mean of the estimate over the tokens that the old policy draws."""
        return (self.old.exp() * estimate_kl(estimator, self.policy, self.reference, self.old)).sum()  # type: ignore[arg-type]


def test_worked_by_hand() -> None:
    """pi = 1/2, ref = 1/4, old = 1/8: log r = -log 2, r = 1/2, w = 4; and the other way round, r = 2."""
    policy, reference = torch.tensor([0.5, 0.25], dtype=F64).log(), torch.tensor([0.25, 0.5], dtype=F64).log()
    old = torch.tensor([0.125, 0.25], dtype=F64).log()
    log2 = math.log(2)
    expected = {
        "k1": [log2, -log2],
        "k2": [log2**2 / 2, log2**2 / 2],
        "k3": [0.5 - 1 + log2, 2 - 1 - log2],
        "unbiased": [4 * (0.5 - 1 + log2), 2 - 1 - log2],
    }
    for estimator, values in expected.items():
        assert estimate_kl(estimator, policy, reference, old).tolist() == pytest.approx(values, rel=1e-14)  # type: ignore[arg-type]


def test_far_above_the_reference_the_policy_is_held_back() -> None:
    """log r = -50: k3 = e^-50 - 1 + 50 with gradient 1 - e^-50; at log r = 50 it is bounded, and its gradient ends."""
    policy = torch.tensor([-0.1, -50.1], dtype=F64, requires_grad=True)
    values = estimate_kl("k3", policy, torch.tensor([-50.1, -0.1], dtype=F64))
    assert values.tolist() == pytest.approx([49.0, math.expm1(20.0) - 20.0], rel=1e-14)
    assert gradient_of(values.sum(), policy).tolist() == pytest.approx([1.0, 0.0], rel=1e-14)


@pytest.mark.parametrize("estimator", ["k1", "k3", "unbiased"])
def test_the_value_is_the_kl_in_the_mean(estimator: str) -> None:
    setting = Setting(is_on_policy=True)
    exact = kl(setting.policy, setting.reference)
    torch.testing.assert_close(setting.expected(estimator), exact, rtol=1e-12, atol=1e-12)


def test_gradients_on_the_policys_own_tokens() -> None:
    """The module's table: k1 none, k2 and unbiased that of KL(pi || ref), k3 that of KL(ref || pi)."""
    setting = Setting(is_on_policy=True)
    right = gradient_of(kl(setting.policy, setting.reference), setting.logits)
    other_way = gradient_of(kl(setting.reference, setting.policy), setting.logits)
    assert (right - other_way).norm() > 0.1 * right.norm()
    expected = {"k1": torch.zeros_like(right), "k2": right, "k3": other_way, "unbiased": right}
    for estimator, gradient in expected.items():
        found = gradient_of(setting.expected(estimator), setting.logits)
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12, msg=estimator)


def test_off_policy_only_the_unbiased_form_is_right() -> None:
    setting = Setting(is_on_policy=False)
    exact = kl(setting.policy, setting.reference)
    right = gradient_of(exact, setting.logits)
    torch.testing.assert_close(setting.expected("unbiased"), exact, rtol=1e-12, atol=1e-12)
    found = gradient_of(setting.expected("unbiased"), setting.logits)
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    for estimator in ("k1", "k2", "k3"):
        off = gradient_of(setting.expected(estimator), setting.logits) - right
        assert off.norm() > 0.05 * right.norm(), estimator


def test_in_the_reward_k1_gives_the_gradient_of_the_kl() -> None:
    """A policy gradient with the price -k1 as reward, over two independent tokens: that of -KL of the pairs."""
    setting = Setting(is_on_policy=True)
    joint = setting.policy[:, None] + setting.policy[None, :]
    joint_ref = setting.reference[:, None] + setting.reference[None, :]
    price = estimate_kl("k1", joint, joint_ref).detach()
    surrogate = (joint.detach().exp() * joint * -price).sum()
    exact = -2 * kl(setting.policy, setting.reference)
    torch.testing.assert_close(
        gradient_of(surrogate, setting.logits), gradient_of(exact, setting.logits), rtol=1e-12, atol=1e-12
    )


def test_a_token_that_one_of_them_cannot_draw_stays_finite() -> None:
    policy = torch.tensor([-800.0, -1e-9], dtype=torch.float32, requires_grad=True)
    reference, old = torch.tensor([-1e-9, -800.0]), torch.tensor([-1.0, -1.0])
    for estimator in ("k2", "k3", "unbiased"):
        loss = estimate_kl(estimator, policy, reference, old).sum()  # type: ignore[arg-type]
        assert math.isfinite(loss.item()) and gradient_of(loss, policy).isfinite().all(), estimator


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "unbiased"])
def test_the_term_is_the_estimate_times_the_coefficient_and_its_metric_is_k3(estimator: str) -> None:
    setting = Setting(is_on_policy=False)
    columns = {"ref_logprobs": setting.reference, "old_logprobs": setting.old}
    term = ReferenceKL(kl_coefficient=0.3, kl_estimator=estimator)  # type: ignore[arg-type]
    tokens = TokenBatch(setting.policy, {name: columns[name] for name in term.columns})
    expected = 0.3 * estimate_kl(estimator, setting.policy, setting.reference, setting.old)  # type: ignore[arg-type]
    assert torch.equal(term(tokens).loss_N, expected)
    measured = ReferenceDistance()(TokenBatch(setting.policy, {"ref_logprobs": setting.reference}))
    torch.testing.assert_close(
        (setting.policy.detach().exp() * measured["policy/ref_kl"]).sum(),
        kl(setting.policy, setting.reference).detach(),
    )


def test_the_price_of_a_completion_is_the_sum_over_its_tokens() -> None:
    """k1 0.5 and 1, k2 0.125 and 0.5; nothing for no token."""
    assert compute_kl_price("k1", 0.1, [-1.0, -2.0], [-1.5, -3.0]) == pytest.approx(0.15, rel=1e-12)
    assert compute_kl_price("k2", 0.1, [-1.0, -2.0], [-1.5, -3.0]) == pytest.approx(0.0625, rel=1e-12)
    assert compute_kl_price("k3", 2.0, [-1.0], [-1.5]) == pytest.approx(2 * (math.exp(-0.5) - 1 + 0.5), rel=1e-12)
    assert compute_kl_price("k1", 0.1, [], []) == 0.0
