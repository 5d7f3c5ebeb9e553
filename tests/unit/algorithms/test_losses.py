"""Derivation. With r = exp(lp - old), l = -min(r A, clip(r) A):

    A > 0: l = -min(r, 1 + high) A     so dl/dlp = -r A where r < 1 + high, else 0
    A < 0: l = -max(r, 1 - low) A      so dl/dlp = -r A where r > 1 - low,  else 0

The reference below is this case table in float64 Python, not the max of two products that the code takes.
Cannot catch: a wrong denominator, which is not in this function.
"""

import math

import pytest
import torch

from hybridflow.algorithms.losses import MAX_LOG_RATIO, policy_loss
from hybridflow.errors import ProtocolError

LOW, HIGH = 0.2, 0.28
F64 = torch.float64


def random_inputs(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(number, generator=generator, dtype=F64)
    logprobs = old + 0.4 * torch.randn(number, generator=generator, dtype=F64)
    return logprobs, old, torch.randn(number, generator=generator, dtype=F64)


def reference(logprob: float, old: float, advantage: float) -> tuple[float, float, bool, bool]:
    """(loss, gradient, clipped low, clipped high) of one token, by the case table."""
    ratio = math.exp(logprob - old)
    if advantage > 0 and ratio > 1 + HIGH:
        return -(1 + HIGH) * advantage, 0.0, False, True
    if advantage < 0 and ratio < 1 - LOW:
        return -(1 - LOW) * advantage, 0.0, True, False
    return -ratio * advantage, -ratio * advantage, False, False


def test_worked_by_hand() -> None:
    """Ratios 1.5, 1.5, 0.5, 0.5, 1 with advantages +1, -1, +1, -1, +2."""
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.0], dtype=F64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0], dtype=F64)
    loss, low, high = policy_loss(ratios.log(), torch.zeros(5, dtype=F64), advantages, clip_low=LOW, clip_high=HIGH)
    torch.testing.assert_close(loss, torch.tensor([-1.28, 1.5, -0.5, 0.8, -2.0], dtype=F64))
    assert low.tolist() == [False, False, False, True, False]
    assert high.tolist() == [True, False, False, False, False]


def test_loss_and_gradient_against_the_float64_case_table() -> None:
    logprobs, old, advantages = random_inputs(500, seed=1)
    logprobs.requires_grad_()
    loss, low, high = policy_loss(logprobs, old, advantages, clip_low=LOW, clip_high=HIGH)
    loss.sum().backward()
    rows = [reference(*row) for row in zip(logprobs.tolist(), old.tolist(), advantages.tolist(), strict=True)]
    expected_loss, expected_grad, expected_low, expected_high = (list(column) for column in zip(*rows, strict=True))
    torch.testing.assert_close(loss.detach(), torch.tensor(expected_loss, dtype=F64), rtol=1e-12, atol=1e-12)
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor(expected_grad, dtype=F64), rtol=1e-12, atol=1e-12)
    assert (low.tolist(), high.tolist()) == (expected_low, expected_high)
    assert 20 < sum(expected_low) < 480 and 20 < sum(expected_high) < 480  # both clips were exercised


def test_gradient_against_finite_differences() -> None:
    logprobs, old, advantages = random_inputs(40, seed=2)
    logprobs.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: policy_loss(x, old, advantages, clip_low=LOW, clip_high=HIGH)[0], (logprobs,)
    )


def test_order_of_tokens_and_split_do_not_matter() -> None:
    logprobs, old, advantages = random_inputs(64, seed=3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    whole, low, high = policy_loss(logprobs, old, advantages, clip_low=LOW, clip_high=HIGH)
    mixed = policy_loss(logprobs[order], old[order], advantages[order], clip_low=LOW, clip_high=HIGH)
    for got, expected in zip(mixed, (whole, low, high), strict=True):
        assert torch.equal(got, expected[order])
    parts = [
        policy_loss(logprobs[cut], old[cut], advantages[cut], clip_low=LOW, clip_high=HIGH)[0]
        for cut in (slice(0, 10), slice(10, 64))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_before_the_update_the_gradient_is_plain_policy_gradient() -> None:
    _, old, advantages = random_inputs(16, seed=4)
    logprobs = old.clone().requires_grad_()
    loss, low, high = policy_loss(logprobs, old, advantages, clip_low=LOW, clip_high=HIGH)
    loss.sum().backward()
    assert torch.equal(logprobs.grad, -advantages)  # type: ignore[arg-type]
    assert not low.any() and not high.any()


def test_only_the_policy_in_update_gets_a_gradient() -> None:
    logprobs, old, advantages = (tensor.requires_grad_() for tensor in random_inputs(4, seed=5))
    policy_loss(logprobs, old, advantages, clip_low=LOW, clip_high=HIGH)[0].sum().backward()
    assert old.grad is None and advantages.grad is None


def test_an_exploding_ratio_stays_finite() -> None:
    logprobs = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    old = torch.tensor([-500.0, -500.0, -500.0])
    loss, _, _ = policy_loss(logprobs, old, torch.tensor([1.0, 0.0, -1.0]), clip_low=LOW, clip_high=HIGH)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.28, 0.0, math.exp(MAX_LOG_RATIO)]))
    assert logprobs.grad is not None and logprobs.grad.tolist() == [0.0, 0.0, 0.0]


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ProtocolError, match=r"one shape.*\(4,\).*\(4, 1\)"):
        policy_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1), clip_low=LOW, clip_high=HIGH)
