"""The zig-zag cut of a micro-batch, and attention over ranks in float64 against one call per segment."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.attention.context_split import cut_micro_batch, gathered_order, rank_order
from megatron_ext.attention.kernels import attend_causal
from megatron_ext.packing.micro_batch import PackInput, pack_sequences
from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import kernel_programs
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import make_rows

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]


def test_two_ranks_by_hand() -> None:
    """Rows of 5 and 4 tokens become 8 and 4: chunks of 2 and 1. Rank 0 has chunks 0 and 3, rank 1 has 1 and 2."""
    batch = pack_sequences(
        [
            PackInput([10, 11, 12, 13, 14], 1, [1, 1, 1, 1], {"advantage": [1.0, 2.0, 3.0, 4.0]}),
            PackInput([20, 21, 22, 23], 2, [1, 0], {"advantage": [5.0]}),
        ]
    )
    first, second = (cut_micro_batch(batch, 2, rank) for rank in (0, 1))
    assert first.micro_batch.tokens_T.tolist() == [10, 11, 0, 0, 20, 23]
    assert second.micro_batch.tokens_T.tolist() == [12, 13, 14, 0, 21, 22]
    assert first.micro_batch.position_ids_T.tolist() == [0, 1, 0, 0, 0, 3]
    assert second.micro_batch.position_ids_T.tolist() == [2, 3, 4, 0, 1, 2]
    assert first.whole_cu_seqlens.tolist() == second.whole_cu_seqlens.tolist() == [0, 8, 12]
    assert first.micro_batch.cu_seqlens.tolist() == [0, 2, 4, 5, 6]
    # Token 11 is on rank 0 and predicts 12, which rank 1 holds.
    assert first.micro_batch.predict_index_N.tolist() == [0, 1]
    assert first.micro_batch.targets_N.tolist() == [11, 12]
    assert first.micro_batch.loss_inputs["advantage"].tolist() == [1.0, 2.0]
    assert second.micro_batch.predict_index_N.tolist() == [0, 1, 4]
    assert second.micro_batch.targets_N.tolist() == [13, 14, 22]
    assert second.micro_batch.loss_inputs["advantage"].tolist() == [3.0, 4.0, 5.0]
    assert first.predicted_R.tolist() == [0, 1] and second.predicted_R.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("rank", "tokens", "predicting", "targets", "numbers"),
    [(0, "ab..p.", [4], "q", [2]), (1, "cdefqr", [1, 2, 4], "efr", [0, 1, 3])],
)
def test_the_worked_example_of_its_docstring(
    rank: int, tokens: str, predicting: list[int], targets: str, numbers: list[int]
) -> None:
    rows = [PackInput([ord(letter) for letter in row], start, [1, 1]) for row, start in (("abcdef", 4), ("pqr", 1))]
    packed = pack_sequences(rows)
    assert packed.predict_index_N.tolist() == [3, 4, 6, 7]

    cut = cut_micro_batch(packed, 2, rank)

    assert cut.whole_cu_seqlens.tolist() == [0, 8, 12]
    assert cut.micro_batch.cu_seqlens.tolist() == [0, 2, 4, 5, 6]
    assert "".join(chr(token) if token else "." for token in cut.micro_batch.tokens_T.tolist()) == tokens
    assert cut.micro_batch.predict_index_N.tolist() == predicting
    assert "".join(map(chr, cut.micro_batch.targets_N.tolist())) == targets
    assert cut.predicted_R.tolist() == numbers


@pytest.mark.parametrize("multiple", [1, 2, 3, 4])
@pytest.mark.parametrize("cp_size", [1, 2, 3, 4])
def test_every_prediction_is_on_one_rank_with_its_own_token(cp_size: int, multiple: int) -> None:
    batch = pack_sequences(make_rows())
    found: dict[int, tuple[int, int, float]] = {}
    for rank in range(cp_size):
        cut = cut_micro_batch(batch, cp_size, rank, multiple)
        part = cut.micro_batch
        assert part.num_tokens % multiple == 0
        assert part.num_tokens * cp_size == cut.whole_cu_seqlens[-1]
        assert part.cu_seqlens[-1] == part.num_tokens
        tokens = part.tokens_T[part.predict_index_N]
        rows = zip(cut.predicted_R.tolist(), tokens, part.targets_N, part.loss_inputs["weight"], strict=True)
        found |= {row: (int(token), int(target), float(weight)) for row, token, target, weight in rows}
    expected = zip(
        batch.tokens_T[batch.predict_index_N].tolist(),
        batch.targets_N.tolist(),
        batch.loss_inputs["weight"].tolist(),
        strict=True,
    )
    assert [found[row] for row in range(len(found))] == list(expected)


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(cp=3), Layout(tp=4, cp=2, sequence_parallel=True), Layout(tp=3, cp=2)]
)
@pytest.mark.parametrize("length", [1, 2, 7, 24, 25])
def test_padded_length_is_what_the_cut_takes(layout: Layout, length: int) -> None:
    batch = pack_sequences([PackInput(list(range(length)), 1, [], {})])
    cut = cut_micro_batch(batch, layout.cp, 0, layout.pad_to_multiple)
    assert padded_length(length, layout) == layout.cp * cut.micro_batch.num_tokens


def padded_length(length: int, layout: Layout) -> int:
    """Tokens that one row takes over all context parallel ranks: two chunks a rank, each part a whole multiple."""
    if layout.cp == 1:
        return round_up(length, layout.pad_to_multiple)
    return round_up(round_up(length, 2 * layout.cp), layout.cp * math.lcm(2, layout.pad_to_multiple))


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def test_orders_are_permutations_of_each_other() -> None:
    starts = torch.tensor([0, 12, 12, 18])
    assert rank_order(starts, 3, 0).tolist() == [0, 1, 10, 11, 12, 17]
    assert gathered_order(starts, 3).sort().values.tolist() == list(range(18))


LENGTHS = [8, 8, 24, 16, 40, 40, 8]


def attention_case() -> dict[str, Any]:
    """Grouped queries in float64, whole; lengths that 2 and 4 ranks can cut."""
    generator = torch.Generator().manual_seed(5)
    total = sum(LENGTHS)
    shapes = {"query": (total, 8, 8), "key": (total, 4, 8), "value": (total, 4, 8), "grad": (total, 8, 8)}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {**tensors, "cu_seqlens": torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32), "scale": 0.3}


def reference(case: dict[str, Any]) -> dict[str, Tensor]:
    inputs = [case[name].clone().requires_grad_() for name in ("query", "key", "value")]
    outputs = []
    for parts in zip(*(x.split(LENGTHS) for x in inputs), strict=True):
        rows = [part.transpose(0, 1)[None] for part in parts]
        output = F.scaled_dot_product_attention(*rows, is_causal=True, scale=case["scale"], enable_gqa=True)
        outputs.append(output[0].transpose(0, 1))
    output = torch.cat(outputs)
    grads = torch.autograd.grad((output * case["grad"]).sum(), inputs)
    return dict(zip(("output", "query", "key", "value"), (output.detach(), *grads), strict=True))


@pytest.mark.parametrize("cp_size", [2, 4])
def test_attention_over_ranks_equals_separate_calls(cp_size: int) -> None:
    """Output and all gradients, of both exchanges, and of the variable length back end with its kernel written out."""
    case = attention_case()
    expected = reference(case)
    results = run_ranks(Layout(cp=cp_size), kernel_programs.attend_over_ranks, case)
    for rank, result in enumerate(results):
        mine_T = rank_order(case["cu_seqlens"], cp_size, rank)
        for way in ("all_gather", "all_to_all", "varlen"):
            for name, whole in expected.items():
                torch.testing.assert_close(
                    result[way][name], whole[mine_T], rtol=1e-10, atol=1e-10, msg=f"{way} {name}"
                )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [128, 129, 255, 300, 513, 1100])
def test_causal_attention_in_halves_equals_one_call(length: int, dtype: torch.dtype) -> None:
    """Output and gradients, grouped queries, the layout of packed tokens; bfloat16 is not cut, so it is one call."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, length, heads, 8) for heads in (4, 2, 2, 4)]
    query, key, value, grad = (torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes)
    inputs = [x.requires_grad_() for x in (query, key, value)]
    found = attend_causal(query, key, value, 0.3)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(output, inputs, grad) for output in (found, expected)]
    torch.testing.assert_close(*grads)


def test_bfloat16_attention_over_ranks_is_as_close_as_in_one_process() -> None:
    """Against float64 of the same bfloat16 values: the error of the two exchanges is of the order of one rounding."""
    case = attention_case()
    rounded = {name: x.bfloat16() if x.is_floating_point() else x for name, x in case.items() if torch.is_tensor(x)}
    expected = reference({**{name: x.double() for name, x in rounded.items()}, "scale": case["scale"]})
    results = run_ranks(Layout(cp=2), kernel_programs.attend_over_ranks, {**rounded, "scale": case["scale"]})
    for rank, result in enumerate(results):
        mine_T = rank_order(case["cu_seqlens"], 2, rank)
        for way in ("all_gather", "all_to_all"):
            for name, whole in expected.items():
                error = (result[way][name].double() - whole[mine_T]).norm() / whole[mine_T].norm()
                assert error < 0.01, f"{way} {name}: {error:.1e}"
