"""What the ranks of a distributed test do. Each function runs in every process of a layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import varlen

from megatron_ext import schedule
from megatron_ext.attention import A2A, SegmentAttention, build_packed_segments
from megatron_ext.attention_cuda import VarlenAttention
from megatron_ext.context_split import RankBatch, rank_order
from megatron_ext.layout import Layout
from megatron_ext.logprob import vocab_parallel_logprobs
from megatron_ext.optimizer import OptimizerOptions
from megatron_ext.optimizer_repairs import distributed_optimizers
from megatron_ext.packing import MicroBatch, PackInput, pack_sequences
from megatron_ext.policy import MegatronPolicy
from megatron_ext.schedule import LossSums
from megatron_ext.topology import Topology
from tests.dist_cpu.tiny_models import make_rows

from megatron.core.transformer.enums import AttnMaskType  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

TEMPERATURE = 0.8
LR = 1e-3
# With the usual eps of 1e-8 AdamW turns the rounding noise of a zero gradient into a full step of random sign, and no
# two ways of summing agree. 1e-4 is still far below the gradients that matter here.
OPTIONS = OptimizerOptions(lr=LR, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.01, clip_grad=0.5)


def weighted_loss(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
    """Policy-gradient-like, with a term that is not linear in the log-probability."""
    weight_N = micro_batch.loss_inputs["weight"]
    loss = (-weight_N * logprobs_N + 0.02 * logprobs_N.square()).sum()
    metrics = {"logprob": logprobs_N.sum(), "weight": weight_N.sum()}
    if entropy_N is not None:
        metrics["entropy"] = entropy_N.sum()
    return LossSums(loss=loss, num_tokens=logprobs_N.numel(), metrics=metrics)


def broken_loss(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
    """Finite in value, with an infinite gradient."""
    sums = weighted_loss(logprobs_N, entropy_N, micro_batch)
    zero = (logprobs_N - logprobs_N.detach()).abs().sum()
    return LossSums(loss=sums.loss + zero.sqrt(), num_tokens=sums.num_tokens, metrics=sums.metrics)


def pack_rows(rows: list[PackInput], rows_per_micro_batch: int, layout: Layout) -> list[MicroBatch]:
    starts = range(0, len(rows), rows_per_micro_batch)
    return [pack_sequences(rows[i : i + rows_per_micro_batch], layout.pad_to_multiple) for i in starts]


def rank_batches(topology: Topology, layout: Layout, rows_per_micro_batch: int = 3) -> list[MicroBatch]:
    """This data parallel rank's micro-batches. Rank 0 has fewer rows than the last, to show that it does not matter."""
    rows = make_rows()
    cut = len(rows) if topology.dp_size == 1 else 3
    mine = rows[:cut] if topology.dp_rank == 0 else rows[cut:]
    return pack_rows(mine, rows_per_micro_batch, layout)


def open_policy(hf_dir: Path, layout: Layout, topology: Topology, dtype: torch.dtype = torch.float32) -> MegatronPolicy:
    return MegatronPolicy(str(hf_dir), layout, topology, dtype=dtype, optimizer=OPTIONS)


def train(policy: MegatronPolicy, micro_batches: list[MicroBatch], steps: int) -> list[Any]:
    return [
        policy.train_step(micro_batches, weighted_loss, lr=LR, temperature=TEMPERATURE, with_entropy=True)
        for _ in range(steps)
    ]


def exported(policy: MegatronPolicy) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.export_tensors()}


def rank_state(policy: MegatronPolicy) -> list[Tensor]:
    """Every bit that training changes on this rank: parameters, master weights, moments and step counts."""
    state = [parameter.detach().clone() for chunk in policy.chunks for parameter in chunk.parameters()]
    for member in distributed_optimizers(policy.training.optimizer):
        for group in member.optimizer.param_groups:
            for main in group["params"]:
                state.append(main.detach().clone())
                state.extend(value.clone() for _, value in sorted(member.optimizer.state[main].items()))
    return state


def equal_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def short_run(topology: Topology, layout: Layout, hf_dirs: dict[str, Path]) -> dict[str, Any]:
    """Per model: logprobs, two steps, the weights after them."""
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        micro_batches = rank_batches(topology, layout)
        results[name] = {
            "logprobs": policy.logprobs(micro_batches, temperature=TEMPERATURE, with_entropy=True),
            "steps": train(policy, micro_batches, 2),
            "weights": exported(policy),
        }
    return results


def exercise(topology: Topology, layout: Layout, hf_dirs: dict[str, Path], out_dir: Path) -> dict[str, Any]:
    """Per model: logprobs, export bits, four steps with a checkpoint after the second, a broken step, a saved model."""
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        micro_batches = rank_batches(topology, layout)
        result: dict[str, Any] = {"at_start": exported(policy)}
        result["changed_by_loading"] = changed_tensors(result["at_start"], hf_dir)
        result["logprobs"] = policy.logprobs(micro_batches, temperature=TEMPERATURE, with_entropy=True)

        first_half = train(policy, micro_batches, 2)
        if name == "qwen3_tied":  # the harder of the two: a stage holds a copy of the embedding
            policy.save_checkpoint(out_dir / f"{name}_checkpoint")
        result["steps"] = first_half + train(policy, micro_batches, 2)
        result["weights"] = exported(policy)
        result["state"] = rank_state(policy)

        step = policy.train_step(
            micro_batches,
            broken_loss if topology.dp_rank == 0 else weighted_loss,
            lr=LR,
            temperature=TEMPERATURE,
        )
        result["broken_step"] = step
        result["unchanged_by_broken_step"] = equal_bits(result["state"], rank_state(policy))
        policy.save_hf(out_dir / f"{name}_hf")
        results[name] = result
    return results


def changed_tensors(tensors: dict[str, Tensor], hf_dir: Path) -> list[str]:
    """Names whose bits are not those on disk."""
    on_disk = load_file(hf_dir / "model.safetensors")
    return [name for name, tensor in tensors.items() if not torch.equal(tensor, on_disk[name])]


def train_four_steps(topology: Topology, layout: Layout, hf_dir: Path) -> list[Any]:
    return train(open_policy(hf_dir, layout, topology), rank_batches(topology, layout), 4)


def save_after_two_steps(topology: Topology, layout: Layout, hf_dir: Path, checkpoint: Path, out_dir: Path) -> None:
    """And goes no further; writes the model in Hugging Face form too."""
    policy = open_policy(hf_dir, layout, topology)
    train(policy, rank_batches(topology, layout), 2)
    policy.save_checkpoint(checkpoint)
    policy.save_hf(out_dir)


def resume(topology: Topology, layout: Layout, hf_dir: Path, checkpoints: list[Path]) -> list[dict[str, Any]]:
    """Per checkpoint: loads it over fresh weights and goes on for two steps."""
    results = []
    for checkpoint in checkpoints:
        policy = open_policy(hf_dir, layout, topology)
        policy.load_checkpoint(checkpoint)
        steps = train(policy, rank_batches(topology, layout), 2)
        results.append({"steps": steps, "weights": exported(policy), "state": rank_state(policy)})
    return results


def train_packings(topology: Topology, layout: Layout, hf_dir: Path) -> list[dict[str, Any]]:
    """Two steps on the same rows, packed in different ways; the first entry is one row per micro-batch."""
    rows = make_rows()
    nothing = PackInput([5, 6, 7], 1, [0, 0], {"weight": []})
    longest_first = sorted(rows, key=lambda row: -len(row.token_ids))
    packings = [
        pack_rows(rows, 1, layout),
        pack_rows(rows, len(rows), layout),
        pack_rows(rows[::-1], 3, layout),
        pack_rows([*longest_first, nothing], 1, layout),
        [pack_sequences(rows, pad_to_multiple=64)],
    ]
    results = []
    for packing in packings:
        policy = open_policy(hf_dir, layout, topology)
        results.append({"steps": train(policy, packing, 2), "weights": exported(policy)})
    return results


def compare_families(topology: Topology, layout: Layout, hf_dirs: dict[str, Path]) -> dict[str, Any]:
    """Log-probabilities and entropies by model and temperature, and what loading and exporting changed."""
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        micro_batches = pack_rows(make_rows(), 3, layout)
        results[name] = {
            temperature: policy.logprobs(micro_batches, temperature=temperature, with_entropy=True)
            for temperature in (1.0, 0.6)
        }
        results[name]["changed_by_loading"] = changed_tensors(exported(policy), hf_dir)
    return results


def start_over(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """One step after a reset of the optimizer, and the same from a new policy with those weights and options."""
    micro_batches = rank_batches(topology, layout)
    options = OptimizerOptions(lr=LR, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.1, clip_grad=0.2)
    policy = open_policy(hf_dir, layout, topology)
    train(policy, micro_batches, 2)
    fresh = MegatronPolicy(str(hf_dir), layout, topology, dtype=torch.float32, optimizer=options)
    fresh.model.load_state_dict(policy.model.state_dict())
    policy.reset_optimizer(options)
    return {
        "steps": [train(policy, micro_batches, 1), train(fresh, micro_batches, 1)],
        "states": [rank_state(policy), rank_state(fresh)],
    }


def load_broken(topology: Topology, layout: Layout, broken_dirs: list[Path]) -> list[str]:
    """The message with which each directory is refused."""
    messages = []
    for hf_dir in broken_dirs:
        try:
            open_policy(hf_dir, layout, topology)
        except ValueError as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def head_gradients(topology: Topology, layout: Layout, cases: list[dict[str, Any]]) -> list[dict[str, Tensor]]:
    """`vocab_parallel_logprobs` with its gradients on this rank's rows of a padded weight."""
    results = []
    for case in cases:
        hidden = case["hidden"].clone().requires_grad_()
        padding = torch.full((-case["weight"].size(0) % topology.tp_size, hidden.size(1)), 9.0)
        weight = torch.cat([case["weight"], padding]).chunk(topology.tp_size)[topology.tp_rank].clone().requires_grad_()
        logprobs_N, entropy_N = vocab_parallel_logprobs(
            hidden,
            weight,
            case["targets"],
            temperature=case["temperature"],
            tp_group=topology.tp_group,
            vocab_size=case["weight"].size(0),
            chunk_tokens=case["chunk_tokens"],
            with_entropy=True,
        )
        (logprobs_N * case["grad"]).sum().backward()
        outputs = {"logprobs": logprobs_N.detach(), "entropy": entropy_N, "hidden_grad": hidden.grad}
        results.append({**outputs, "weight_grad": weight.grad})
    return results


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
    enable_gqa: bool,
) -> Tensor:
    """What torch documents of its function: causal, the last query of each segment aligned with its last key."""
    assert window_size == (-1, 0)
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


def batched_exchange(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """A step as it should be, the refusal of batched exchange, and the step that it would have made."""
    rows = [PackInput([number, *range(1, 24)], 8, [1] * 16, {"weight": [1.0] * 16}) for number in range(4)]
    micro_batches = pack_rows(rows, 1, layout)  # of equal length: nothing else would go unnoticed
    good = train(open_policy(hf_dir, layout, topology), micro_batches, 1)[0]
    policy = open_policy(hf_dir, layout, topology)
    policy.model.config.overlap_p2p_comm, policy.model.config.batch_p2p_comm = False, True
    try:
        train(policy, micro_batches, 1)
        refusal = "none"
    except ValueError as error:
        refusal = str(error)
    schedule.check_pipeline_exchange = lambda config: None
    batched = train(policy, micro_batches, 1)[0]
    return {"grad_norm": good.grad_norm, "refusal": refusal, "batched_grad_norm": batched.grad_norm}


def train_bfloat16(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """Two steps with parameters in bfloat16, and whether each is its float32 master weight, rounded."""
    policy = MegatronPolicy(str(hf_dir), layout, topology, dtype=torch.bfloat16, optimizer=OPTIONS)
    before = exported(policy)
    steps = train(policy, rank_batches(topology, layout), 2)
    pairs = [
        (main, shard)
        for member in distributed_optimizers(policy.training.optimizer)
        for mains, shards in zip(member.shard_fp32_from_float16_groups, member.shard_float16_groups, strict=True)
        for main, shard in zip(mains, shards, strict=True)
    ]
    masters_agree = bool(pairs) and all(
        main.dtype == torch.float32 and torch.equal(main.bfloat16(), shard) for main, shard in pairs
    )
    return {"before": before, "steps": steps, "weights": exported(policy), "masters_agree": masters_agree}


def count_attention_calls(topology: Topology, layout: Layout, hf_dir: Path) -> int:
    """How often a layer's attention runs in a training step of one micro-batch."""
    policy = open_policy(hf_dir, layout, topology)
    calls = []
    for chunk in policy.chunks:
        for module in chunk.modules():
            if isinstance(module, SegmentAttention):
                module.register_forward_hook(lambda *_: calls.append(1))
    train(policy, pack_rows(make_rows(), 8, layout), 1)
    return len(calls)
