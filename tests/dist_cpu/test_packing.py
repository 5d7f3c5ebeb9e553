"""Packed micro-batches and the blocks their attention runs in."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from megatron_ext.attention.packed import plan_blocks
from megatron_ext.packing.micro_batch import PackInput, pack_sequences


def test_two_sequences_by_hand() -> None:
    """Tokens 12 and 22, 23 are predicted, from the positions before them; the pack is padded from 7 to 8."""
    batch = pack_sequences(
        [
            PackInput([10, 11, 12, 13], 2, [1, 0], {"advantage": [0.5]}),
            PackInput([21, 22, 23], 1, [1, 1], {"advantage": [-1.0, 2.0]}),
        ],
        pad_to_multiple=4,
    )
    assert batch.tokens_T.tolist() == [10, 11, 12, 13, 21, 22, 23, 0]
    assert batch.position_ids_T.tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 8]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.max_seqlen == 4
    assert batch.predict_index_N.tolist() == [1, 4, 5]
    assert batch.targets_N.tolist() == [12, 22, 23]
    assert batch.loss_inputs["advantage"].tolist() == [0.5, -1.0, 2.0]


def test_nothing_predicted_keeps_the_names() -> None:
    batch = pack_sequences([PackInput([1, 2], 1, [0], {"advantage": []})])
    assert batch.predict_index_N.numel() == batch.targets_N.numel() == 0
    assert batch.loss_inputs["advantage"].shape == (0,)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "no sequences"),
        ([PackInput([], 1, [])], "sequence 0 has no tokens"),
        ([PackInput([1, 2], 0, [1])], "predict_from = 0"),
        ([PackInput([1, 2], 1, [1, 1])], "2 entries"),
        ([PackInput([1, 2], 1, [1], {"advantage": []})], "0 values for 1 predicted"),
        ([PackInput([1, 2], 1, [0], {"a": []}), PackInput([1, 2], 1, [0], {"b": []})], "sequence 1"),
    ],
)
def test_what_does_not_line_up_is_refused(sequences: list[PackInput], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_sequences(sequences)


@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [6, 6, 2], [9, 3, 8, 1, 7, 3, 30], [4, 5, 6, 7]])
def test_blocks_attend_as_separate_calls_do(lengths: list[int]) -> None:
    """Outputs and gradients in float64 equal those of one call per segment, whatever block a segment is padded into."""
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).tolist()
    blocks, places = plan_blocks(cu_seqlens)
    qkv = torch.randn(3, cu_seqlens[-1], 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(cu_seqlens[-1], 2, 4, dtype=torch.float64)

    outputs = []
    for block in blocks:
        output = F.scaled_dot_product_attention(*(block.take(x) for x in qkv), is_causal=True)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    found = torch.cat(outputs) if places is None else torch.cat(outputs)[places]
    (found_grad,) = torch.autograd.grad((found * weight).sum(), qkv)

    segments = itertools.pairwise(cu_seqlens)
    separate = [
        F.scaled_dot_product_attention(*(x[start:end].transpose(0, 1)[None] for x in qkv), is_causal=True)
        for start, end in segments
    ]
    expected = torch.cat([output[0].transpose(0, 1) for output in separate])
    (expected_grad,) = torch.autograd.grad((expected * weight).sum(), qkv)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_grad, expected_grad)


def test_similar_lengths_share_a_block() -> None:
    cu_seqlens = torch.tensor([0, 100, 20, 90, 19, 80, 100]).cumsum(0).tolist()
    blocks, _ = plan_blocks(cu_seqlens)
    assert [(block.count, block.length) for block in blocks] == [(4, 100), (2, 20)]
