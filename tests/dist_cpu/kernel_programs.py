"""Programs of the tests of the output layer and of attention alone, without a model."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import varlen

from megatron_ext.attention.context_split import RankBatch, rank_order
from megatron_ext.attention.cuda import VarlenAttention
from megatron_ext.attention.packed import A2A, SegmentAttention, build_packed_segments
from megatron_ext.model.logprob import vocab_parallel_logprobs
from megatron_ext.packing.micro_batch import PackInput, pack_sequences
from megatron_ext.packing.sampling_mask import RaggedInput
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology

from megatron.core.transformer.enums import AttnMaskType  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip


def head_gradients(topology: Topology, layout: Layout, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`vocab_parallel_logprobs` with its gradients on this rank's rows of a padded weight.

    By what the loss uses: log-probabilities without an entropy beside them, with one, both, and entropies alone.
    """
    results = []
    for case in cases:
        padding = case["weight"].new_full((-case["weight"].size(0) % topology.tp_size, case["hidden"].size(1)), 9.0)
        rows = torch.cat([case["weight"], padding]).chunk(topology.tp_size)[topology.tp_rank]
        mask = None
        if "mask" in case:
            mask = RaggedInput.of([len(one) for one in case["mask"]], [token for one in case["mask"] for token in one])
        made: dict[str, Any] = {}
        for used in ("logprobs alone", "logprobs", "both", "entropy"):
            hidden, weight = case["hidden"].clone().requires_grad_(), rows.clone().requires_grad_()
            logprobs_N, entropy_N = vocab_parallel_logprobs(
                hidden,
                weight,
                case["targets"],
                temperature=case["temperature"],
                tp_group=topology.tp_group,
                vocab_size=case["weight"].size(0),
                chunk_tokens=case["chunk_tokens"],
                with_entropy=used != "logprobs alone",
                sampling_mask=mask,
            )
            head_loss(case, used, logprobs_N, entropy_N).backward()
            made[used] = {
                "logprobs": logprobs_N.detach(),
                "entropy": None if entropy_N is None else entropy_N.detach(),
                "hidden_grad": hidden.grad,
                "weight_grad": weight.grad,
            }
        results.append(made)
    return results


def head_loss(case: dict[str, Any], used: str, logprobs_N: Tensor, entropy_N: Tensor | None) -> Tensor:
    """The case's scalar of what is used."""
    loss = logprobs_N.new_zeros(())
    if used != "entropy":
        loss = loss + (logprobs_N * case["grad"]).sum()
    if used in ("both", "entropy"):
        assert entropy_N is not None
        loss = loss + (entropy_N * case["entropy_grad"]).sum()
    return loss


def attend_over_ranks(topology: Topology, layout: Layout, case: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Attention of this rank's tokens of `case` and its gradients, by each exchange; on a CPU varlen is written out."""
    segments = build_packed_segments(
        RankBatch(pack_sequences([PackInput([0], 1, [])]), case["cu_seqlens"], torch.empty(0)),
        topology.cp_group,
        topology.device,
    )
    mine_T = rank_order(case["cu_seqlens"], topology.cp_size, topology.cp_rank)
    varlen.varlen_attn = varlen_by_hand  # type: ignore[assignment]
    results = {}
    for way, module, exchange in (
        ("all_gather", SegmentAttention, "all_gather"),
        ("all_to_all", SegmentAttention, A2A),
        ("varlen", VarlenAttention, "all_gather"),
    ):
        config = TransformerConfig(num_layers=1, hidden_size=64, num_attention_heads=8, cp_comm_type=exchange)
        attention = module(config, 1, AttnMaskType.causal, "self", softmax_scale=case["scale"])
        inputs = {name: case[name][mine_T].requires_grad_() for name in ("query", "key", "value")}
        output = attention(*(x[:, None] for x in inputs.values()), None, packed_seq_params=segments)
        output = output.view_as(inputs["query"])
        (output * case["grad"][mine_T]).sum().backward()
        results[way] = {"output": output.detach(), **{name: x.grad for name, x in inputs.items()}}
    return results


def varlen_by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as torch documents it: causal, the last query of each segment aligned with its last key."""
    assert window_size == (-1, 0) and enable_gqa == (query.size(1) != key.size(1))
    assert max_q == cu_seq_q.diff().max() and max_k == cu_seq_k.diff().max()
    outputs = []
    for q, k, v in zip(
        query.split(cu_seq_q.diff().tolist()),
        key.split(cu_seq_k.diff().tolist()),
        value.split(cu_seq_k.diff().tolist()),
        strict=True,
    ):
        mask = torch.ones(q.size(0), k.size(0), dtype=torch.bool).tril(k.size(0) - q.size(0))
        rows = (x.transpose(0, 1)[None] for x in (q, k, v))
        output = F.scaled_dot_product_attention(*rows, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)
