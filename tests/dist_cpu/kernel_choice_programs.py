"""Programs of the tests of `kernels`: the same training by torch and by stand-ins for the other libraries."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.attention.context_split import RankBatch
from megatron_ext.attention.cuda import TransformerEngineAttention
from megatron_ext.attention.packed import SegmentAttention, build_packed_segments
from megatron_ext.packing.micro_batch import PackInput, pack_sequences
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from megatron_ext.policy import MegatronPolicy
from tests.dist_cpu.rank_programs import OPTIONS, copy_weights, equal_bits, exported, rank_batches, rank_state, train

from megatron.core.extensions import transformer_engine as upstream  # isort: skip
from megatron.core.transformer.enums import AttnMaskType  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

STAND_INS = Path(__file__).parent / "stand_ins"
PACKAGES = {"apex": "apex", "transformer_engine": "transformer_engine"}


def train_by_each(topology: Topology, layout: Layout, hf_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Per library and dtype: steps, weights, calls of its kernels; of float32 also what a checkpoint of it gives."""
    sys.path += [str(STAND_INS / "apex"), str(STAND_INS / "te")]
    results: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for library in ("torch", "apex", "transformer_engine"):
            results[library, dtype] = _train(topology, layout, hf_dir, library, dtype)
            if library != "torch" and dtype == torch.float32:
                policy = results[library, dtype].pop("policy")
                results[library, dtype] |= _save_and_load(policy, out_dir / library)
            results[library, dtype].pop("policy", None)
    results["torch again"] = _train(topology, layout, hf_dir, "torch", torch.float32)
    results["torch again"].pop("policy")
    results["attention"] = attend(topology)
    return results


def _train(topology: Topology, layout: Layout, hf_dir: Path, library: Any, dtype: torch.dtype) -> dict[str, Any]:
    policy = MegatronPolicy(str(hf_dir), layout, topology, dtype=dtype, optimizer=OPTIONS, kernels=library)
    calls = {}
    if library in PACKAGES:
        calls = importlib.import_module(PACKAGES[library]).CALLS
        calls.clear()
    steps = train(policy, rank_batches(topology, layout), 2)
    return {
        "policy": policy,
        "steps": steps,
        "weights": exported(policy),
        "calls": dict(calls),
        "says": policy.describe_kernels(),
        "names": sorted(policy.model.state_dict()),
    }


def _save_and_load(policy: MegatronPolicy, directory: Path) -> dict[str, Any]:
    """Whether a checkpoint goes on to the bit, and how far weights are that torch trains on from it."""
    batches = rank_batches(policy.topology, policy.layout)
    policy.save_checkpoint(directory)
    train(policy, batches, 1)
    after = rank_state(policy)
    policy.load_checkpoint(directory)
    train(policy, batches, 1)
    goes_on = equal_bits(after, rank_state(policy))
    other = MegatronPolicy(
        policy.hf_dir, policy.layout, policy.topology, dtype=policy.dtype, optimizer=OPTIONS, kernels="torch"
    )
    other.load_checkpoint(directory)
    train(other, batches, 1)
    pairs = zip(copy_weights(policy), copy_weights(other), strict=True)
    return {"goes_on": goes_on, "apart": max(float((mine - theirs).abs().max()) for mine, theirs in pairs)}


def attend(topology: Topology) -> dict[str, Tensor]:
    """Segments of 5 and 3 tokens by torch, and by Transformer Engine's class, which here attends segment by segment."""
    upstream.TEDotProductAttention = StandInAttention  # type: ignore[misc]
    lengths, generator = torch.tensor([0, 5, 8]), torch.Generator().manual_seed(3)
    batch = RankBatch(pack_sequences([PackInput([0], 1, [])]), lengths, torch.empty(0))
    segments = build_packed_segments(batch, topology.cp_group, topology.device)
    config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=2)
    query, key, value = (torch.randn(8, 1, heads, 8, generator=generator) for heads in (4, 2, 2))
    made = {}
    for name, module in (("torch", SegmentAttention), ("transformer_engine", TransformerEngineAttention)):
        attention = module(
            config=config,
            layer_number=1,
            attn_mask_type=AttnMaskType.causal,
            attention_type="self",
            softmax_scale=0.3,
        )
        made[name] = attention(query, key, value, None, packed_seq_params=segments)
    return made


class StandInAttention(torch.nn.Module):
    """In the manner of Megatron's wrapper around Transformer Engine's: packed tokens in, heads joined out."""

    def __init__(
        self, config: Any, layer_number: int, attn_mask_type: Any, attention_type: str, softmax_scale: float
    ) -> None:
        super().__init__()
        assert attn_mask_type == AttnMaskType.padding_causal
        self.scale = softmax_scale

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: None, mask_type: Any, packed_seq_params: Any
    ) -> Tensor:
        assert packed_seq_params.qkv_format == "thd" and mask_type == AttnMaskType.padding_causal
        lengths = packed_seq_params.cu_seqlens_q_padded.diff().tolist()
        assert packed_seq_params.max_seqlen_q == max(lengths)
        outputs = [
            torch.nn.functional.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in parts), is_causal=True, scale=self.scale, enable_gqa=True
            )[0].transpose(0, 1)
            for parts in zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
        ]
        return torch.cat(outputs).flatten(1)
