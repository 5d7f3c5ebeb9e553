"""Vocab-parallel log-probabilities against float64, gradients included, on one rank and on two."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from megatron_ext.model.logprob import WORK_BYTES, vocab_parallel_logprobs
from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import kernel_programs
from tests.dist_cpu.launch import run_ranks

pytestmark = pytest.mark.dist_cpu


def make_case(num_positions: int, vocab_size: int, chunk_tokens: int, temperature: float, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(num_positions, 16, generator=generator),
        "weight": torch.randn(vocab_size, 16, generator=generator),
        "targets": torch.randint(0, vocab_size, (num_positions,), generator=generator),
        "grad": torch.randn(num_positions, generator=generator),
        "entropy_grad": torch.randn(num_positions, generator=generator),
        "temperature": temperature,
        "chunk_tokens": chunk_tokens,
    }


def with_sampling_mask(case: dict[str, Any], largest: int) -> dict[str, Any]:
    """Between 1 and `largest` tokens can be drawn at a position, the target among them; at each third one, any."""
    generator = torch.Generator().manual_seed(9)
    mask: list[list[int]] = []
    for number, target in enumerate(case["targets"].tolist()):
        others = torch.randperm(case["weight"].size(0), generator=generator)[: number % largest].tolist()
        mask.append([] if number % 3 == 2 else sorted({target, *others}))
    return case | {"mask": mask}


def in_float64(case: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in case.items()}


CASES = [
    make_case(11, 37, 4, 1.0, 1),
    make_case(11, 37, 64, 0.7, 2),
    make_case(0, 37, 4, 1.0, 3),
    make_case(5, 1, 2, 2.0, 4),
    with_sampling_mask(make_case(11, 37, 4, 1.0, 5), 3),  # with two ranks often none of them on one
    with_sampling_mask(make_case(11, 37, 64, 0.7, 6), 20),
    with_sampling_mask(make_case(0, 37, 4, 1.0, 7), 3),
    in_float64(with_sampling_mask(make_case(11, 37, 4, 0.7, 8), 20)),
    in_float64(with_sampling_mask(make_case(11, 37, 64, 0.7, 9), 20)),
]


@pytest.mark.parametrize("tp", [1, 2])
def test_equals_float64_with_gradients(tp: int) -> None:
    """Odd vocabularies, so that with two ranks one holds padding (of value 9, which would win); once only padding."""
    ranks = run_ranks(Layout(tp=tp), kernel_programs.head_gradients, CASES)
    for number, case in enumerate(CASES):
        vocab_size = case["weight"].size(0)
        for used in ("logprobs alone", "logprobs", "both", "entropy"):
            # An entropy is the difference of two numbers of the size of logits: of 1e-5 in float32, times a weight.
            tolerance = 5e-5 if used in ("both", "entropy") else 1e-5
            if case["weight"].dtype == torch.float64:
                tolerance = 1e-12
            close = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
            expected = float64_reference(case, used)
            made = [rank[number][used] for rank in ranks]
            weight_grad = torch.cat([one["weight_grad"] for one in made])
            close(weight_grad[:vocab_size].double(), expected["weight_grad"])
            assert not weight_grad[vocab_size:].any()
            for one in made:
                close(one["logprobs"].double(), expected["logprobs"])
                close(one["hidden_grad"].double(), expected["hidden_grad"])
                assert torch.equal(one["logprobs"], made[0]["logprobs"])
                assert torch.equal(one["hidden_grad"], made[0]["hidden_grad"])
                if used == "logprobs alone":
                    assert one["entropy"] is None
                else:
                    close(one["entropy"].double(), expected["entropy"])


def float64_reference(case: dict[str, Any], used: str = "logprobs") -> dict[str, torch.Tensor]:
    """By torch's own gradients of a softmax over all logits."""
    hidden = case["hidden"].double().clone().requires_grad_()
    weight = case["weight"].double().clone().requires_grad_()
    logits = hidden @ weight.t() / case["temperature"]
    for row, tokens in enumerate(case.get("mask", [])):
        if tokens:
            left_out = torch.ones(logits.size(1), dtype=torch.bool)
            left_out[tokens] = False
            # Far below all others, not -inf, of which torch's gradient of p log p would be not-a-number.
            logits = logits.masked_fill(left_out & (torch.arange(logits.size(0)) == row)[:, None], -1e4)
    log_softmax = logits.log_softmax(-1)
    logprobs = log_softmax.gather(1, case["targets"][:, None])[:, 0]
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    kernel_programs.head_loss(case, used, logprobs, entropy).backward()
    grads = {"hidden_grad": hidden.grad, "weight_grad": weight.grad}
    return {"logprobs": logprobs.detach(), "entropy": entropy.detach(), **grads}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_gradient_is_added_to_main_grad(dtype: torch.dtype) -> None:
    """Twice the gradient in `main_grad` after two passes, and from autograd a zero that takes no memory."""
    case = make_case(11, 37, 4, 0.7, 5)
    hidden, weight = case["hidden"].to(dtype).requires_grad_(), case["weight"].to(dtype).requires_grad_()
    weight.main_grad = torch.zeros(37, 16)  # type: ignore[attr-defined]
    for _ in range(2):
        head_logprobs(case, hidden, weight, fp32_head=True).backward()
    assert weight.grad is not None and weight.grad.is_sparse and weight.grad._nnz() == 0
    expected = float64_reference(case | {"hidden": hidden.detach(), "weight": weight.detach()})
    torch.testing.assert_close(weight.main_grad.double(), 2 * expected["weight_grad"], rtol=1e-5, atol=1e-5)  # type: ignore[attr-defined]


def test_fp32_head_is_exact_where_the_low_precision_head_is_not() -> None:
    """On hidden states and weights in bfloat16; the fp32 head works through the weight in several blocks."""
    case = make_case(300, 517, 64, 0.7, 6)
    hidden, weight = case["hidden"].bfloat16(), case["weight"].bfloat16()
    expected = (float64_reference(case | {"hidden": hidden, "weight": weight})["logprobs"] * case["grad"]).sum()
    errors = [
        abs(head_logprobs(case, hidden, weight, fp32_head=fp32_head).item() - expected.item())
        for fp32_head in (True, False)
    ]
    assert errors[0] < 1e-3 < errors[1]


def test_blocks_of_a_low_precision_weight_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 3 rows of float32 weight at a time gives what room for all gives."""
    case = make_case(11, 37, 4, 0.7, 7)
    results = []
    for work_bytes in (64 * 2**20, 3 * 16 * 4):
        monkeypatch.setitem(WORK_BYTES, "cpu", work_bytes)
        hidden = case["hidden"].bfloat16().requires_grad_()
        weight = case["weight"].bfloat16().requires_grad_()
        head_logprobs(case, hidden, weight, fp32_head=True).backward()
        results.append((hidden.grad, weight.grad))
    for whole, blocks in zip(*results, strict=True):
        torch.testing.assert_close(blocks, whole, rtol=1e-2, atol=1e-3)


def head_logprobs(case: dict[str, Any], hidden: torch.Tensor, weight: torch.Tensor, fp32_head: bool) -> torch.Tensor:
    """The case's scalar, from the tensors given."""
    logprobs_N, entropy_N = vocab_parallel_logprobs(
        hidden,
        weight,
        case["targets"],
        temperature=case["temperature"],
        tp_group=None,
        vocab_size=weight.size(0),
        chunk_tokens=case["chunk_tokens"],
        fp32_head=fp32_head,
    )
    assert entropy_N is None
    return (logprobs_N * case["grad"]).sum()
