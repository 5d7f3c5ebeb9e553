"""Programs of the distributed tests. Each function runs in every process of a layout."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from hybridflow.algorithms.objective import build_objective
from hybridflow.algorithms.spec import supervised_spec
from hybridflow.trainer.policy_update import LossCallback
from megatron_ext.attention.packed import SegmentAttention
from megatron_ext.model.layer_specs import GatedMLP
from megatron_ext.optimizer.optimizer import OptimizerOptions
from megatron_ext.optimizer.repairs import distributed_optimizers
from megatron_ext.packing.micro_batch import MicroBatch, PackInput, pack_sequences
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from megatron_ext.policy import MegatronPolicy
from megatron_ext.schedule import LossFn, LossSums
from tests.dist_cpu.tiny_models import make_rows

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


def sequence_loss(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
    """GSPO-like: a function of each row's mean log-probability, weighted by row and group; a mean over rows."""
    rows = micro_batch.rows
    weight_R = 1 + 0.5 * rows.group_ids_R - 0.3 * rows.row_ids_R
    mean_R = rows.mean(logprobs_N)
    loss_N = rows.spread(weight_R * (0.5 * mean_R).exp() / rows.count_R.clamp(min=1))
    first_N = micro_batch.loss_inputs["first"]
    metrics = {"mean": rows.spread(mean_R.detach()).mul(first_N).sum(), "groups": rows.spread(rows.group_ids_R).sum()}
    return LossSums(loss=loss_N.sum(), num_tokens=first_N.sum(), metrics=metrics)


def mean_weighted_loss(logprobs: Sequence[Tensor]) -> Tensor:
    """`weighted_loss` of a step, from the log-probabilities of each of the shared rows."""
    pairs = zip(logprobs, make_rows(), strict=True)
    sums = [weighted_loss(logprobs_N, None, pack_sequences([row])) for logprobs_N, row in pairs]
    return torch.stack([part.loss for part in sums]).sum() / sum(int(part.num_tokens) for part in sums)


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


def parameters_of(policy: MegatronPolicy) -> list[Tensor]:
    return [parameter for chunk in policy.chunks for parameter in chunk.parameters()]


def copy_weights(policy: MegatronPolicy) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters_of(policy)]


def fresh_step(
    policy: MegatronPolicy, weights: list[Tensor], micro_batches: list[MicroBatch], loss_fn: LossFn
) -> dict[str, Any]:
    """One step from `weights` with a fresh optimizer; the weights after."""
    with torch.no_grad():
        for parameter, value in zip(parameters_of(policy), weights, strict=True):
            parameter.copy_(value)
    policy.reset_optimizer(OPTIONS)
    step = policy.train_step(micro_batches, loss_fn, lr=LR, temperature=1.0)
    return {"step": step, "weights": exported(policy)}


def sequence_mean() -> LossCallback:
    return LossCallback(build_objective(supervised_spec("sequence_mean")))


def exported(policy: MegatronPolicy) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.export_tensors()}


def rank_state(policy: MegatronPolicy) -> list[Tensor]:
    """Every bit that training changes on this rank: parameters, master weights, moments and step counts."""
    state = copy_weights(policy)
    for member in distributed_optimizers(policy.training.optimizer):
        for group in member.optimizer.param_groups:
            for main in group["params"]:
                state.append(main.detach().clone())
                state.extend(value.clone() for _, value in sorted(member.optimizer.state[main].items()))
    return state


def equal_bits(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def exchange_reference(policy: MegatronPolicy, micro_batches: list[MicroBatch], out_dir: Path) -> dict[str, Any]:
    """Log-probabilities by the reference, and by it again once it was saved and read; a pass that fails in between.

    `unchanged` is whether every bit of the policy's state was each time what it had been.
    """
    before, unchanged, outputs = rank_state(policy), [], []
    with policy.as_reference():
        outputs.append(policy.logprobs(micro_batches, temperature=TEMPERATURE, with_entropy=True))
        policy.save_hf(out_dir, policy.dtype)
    unchanged.append(equal_bits(before, rank_state(policy)))
    policy.keep_reference(out_dir)
    unchanged.append(equal_bits(before, rank_state(policy)))
    with policy.as_reference():
        outputs.append(policy.logprobs(micro_batches, temperature=TEMPERATURE, with_entropy=True))
    unchanged.append(equal_bits(before, rank_state(policy)))
    with suppress(ZeroDivisionError), policy.as_reference():
        raise ZeroDivisionError
    return {"outputs": outputs, "unchanged": [*unchanged, equal_bits(before, rank_state(policy))]}


def same_outputs(found: list[Any] | None, expected: list[Any] | None) -> bool:
    """Bit for bit, on the last stage; elsewhere there are none."""
    pairs = zip(found or [], expected or [], strict=True)
    return all(torch.equal(one.logprobs_N, other.logprobs_N) for one, other in pairs)


SEQUENCE_LOSS_MODEL = "qwen3_tied"


def short_run(topology: Topology, layout: Layout, hf_dirs: dict[str, Path]) -> dict[str, Any]:
    """Per model: logprobs, two steps, the weights after them; a supervised step on one pack."""
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        at_start = copy_weights(policy)
        micro_batches = rank_batches(topology, layout)
        results[name] = {
            "logprobs": policy.logprobs(micro_batches, temperature=TEMPERATURE, with_entropy=True),
            "steps": train(policy, micro_batches, 2),
            "weights": exported(policy),
            "sft": fresh_step(
                policy, at_start, rank_batches(topology, layout, rows_per_micro_batch=8), sequence_mean()
            ),
        }
        if name == SEQUENCE_LOSS_MODEL:  # the reference packs otherwise
            packed = rank_batches(topology, layout, rows_per_micro_batch=8 if layout.world_size == 1 else 2)
            results[name]["sequence"] = fresh_step(policy, at_start, packed, sequence_loss)
    return results


def exercise(topology: Topology, layout: Layout, hf_dirs: dict[str, Path], out_dir: Path) -> dict[str, Any]:
    """Per model: logprobs, export bits, four steps with a checkpoint after the second, a broken step, a saved model.

    And a supervised step on one pack.
    """
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        at_start = copy_weights(policy)
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
        result["sft"] = fresh_step(
            policy, at_start, rank_batches(topology, layout, rows_per_micro_batch=8), sequence_mean()
        )
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
    nothing = PackInput([5, 6, 7], 1, [0, 0], {name: [] for name in rows[0].loss_inputs})
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


def train_sft(topology: Topology, layout: Layout, hf_dirs: dict[str, Path], steps: int) -> dict[str, Any]:
    """Per model: supervised steps over packed rows, and the weights after them."""
    results = {}
    for name, hf_dir in hf_dirs.items():
        policy = open_policy(hf_dir, layout, topology)
        micro_batches = rank_batches(topology, layout)
        taken = [policy.train_step(micro_batches, sequence_mean(), lr=LR, temperature=1.0) for _ in range(steps)]
        results[name] = {"steps": taken, "weights": exported(policy)}
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


def count_layer_calls(topology: Topology, layout: Layout, hf_dir: Path) -> tuple[int, int]:
    """How often attention and feed-forward of layers run in a training step of one micro-batch."""
    policy = open_policy(hf_dir, layout, topology)
    calls = []
    for chunk in policy.chunks:
        for module in chunk.modules():
            if isinstance(module, SegmentAttention | GatedMLP):
                module.register_forward_hook(lambda module, *_: calls.append(type(module)))
    train(policy, pack_rows(make_rows(), 8, layout), 1)
    return calls.count(SegmentAttention), calls.count(GatedMLP)
