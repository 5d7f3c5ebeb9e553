"""Vocab-parallel log-probabilities against float64, gradients included, on one rank and on two."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from megatron_ext.layout import Layout
from megatron_ext.logprob import vocab_parallel_logprobs
from tests.dist_cpu import rank_programs
from tests.dist_cpu.launch import run_ranks

pytestmark = pytest.mark.dist_cpu


def make_case(num_positions: int, vocab_size: int, chunk_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(num_positions, 16, generator=generator),
        "weight": torch.randn(vocab_size, 16, generator=generator),
        "targets": torch.randint(0, vocab_size, (num_positions,), generator=generator),
        "grad": torch.randn(num_positions, generator=generator),
        "temperature": temperature,
        "chunk_tokens": chunk_tokens,
    }


CASES = [
    make_case(11, 37, 4, 1.0, 1),
    make_case(11, 37, 64, 0.7, 2),
    make_case(0, 37, 4, 1.0, 3),
    make_case(5, 1, 2, 2.0, 4),
]


@pytest.mark.parametrize("tp", [1, 2])
def test_equals_float64_with_gradients(tp: int) -> None:
    """Odd vocabularies, so that with two ranks one holds padding (of value 9, which would win); once only padding."""
    ranks = run_ranks(Layout(tp=tp), rank_programs.head_gradients, CASES)
    for number, case in enumerate(CASES):
        expected = float64_reference(case)
        weight_grad = torch.cat([rank[number]["weight_grad"] for rank in ranks])
        vocab_size = case["weight"].size(0)
        torch.testing.assert_close(weight_grad[:vocab_size].double(), expected["weight_grad"], rtol=1e-5, atol=1e-5)
        assert not weight_grad[vocab_size:].any()
        for rank in ranks:
            assert torch.equal(rank[number]["logprobs"], ranks[0][number]["logprobs"])
            for key in ("logprobs", "entropy", "hidden_grad"):
                torch.testing.assert_close(rank[number][key].double(), expected[key], rtol=1e-5, atol=1e-5)


def float64_reference(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    hidden = case["hidden"].double().requires_grad_()
    weight = case["weight"].double().requires_grad_()
    log_softmax = (hidden @ weight.t() / case["temperature"]).log_softmax(-1)
    logprobs = log_softmax.gather(1, case["targets"][:, None])[:, 0]
    (logprobs * case["grad"]).sum().backward()
    entropy = -(log_softmax.exp() * log_softmax).sum(-1).detach()
    grads = {"hidden_grad": hidden.grad, "weight_grad": weight.grad}
    return {"logprobs": logprobs.detach(), "entropy": entropy, **grads}


def test_by_hand() -> None:
    """Logits 0 and ln 3: probabilities 1/4 and 3/4."""
    logprobs_N, entropy_N = vocab_parallel_logprobs(
        torch.tensor([[1.0]]),
        torch.tensor([[0.0], [math.log(3.0)]]),
        torch.tensor([1]),
        temperature=1.0,
        tp_group=None,
        vocab_size=2,
        with_entropy=True,
    )
    assert logprobs_N.item() == pytest.approx(math.log(0.75))
    assert entropy_N is not None
    assert entropy_N.item() == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def test_temperature_zero_is_refused() -> None:
    empty = torch.zeros(0, 4), torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="temperature = 0"):
        vocab_parallel_logprobs(*empty, temperature=0.0, tp_group=None, vocab_size=3)
