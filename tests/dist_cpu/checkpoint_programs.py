"""Programs of the checkpoint and residency tests. Each function runs in every process of a layout."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from megatron_ext.checkpoint import commit
from megatron_ext.optimizer.repairs import distributed_optimizers, mend_optimizer
from megatron_ext.optimizer.residency import ActivationOffload, ResidencyError
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology, init_distributed
from megatron_ext.policy import MegatronPolicy
from tests.dist_cpu.launch import start_rank
from tests.dist_cpu.rank_programs import (
    TEMPERATURE,
    equal_bits,
    exchange_reference,
    exported,
    open_policy,
    rank_batches,
    rank_state,
    train,
)
from tests.ports import free_port


def save_both_ways(topology: Topology, layout: Layout, hf_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Four steps. After the second a save in the foreground and one in the background, which steps 3 and 4 overtake."""
    policy = open_policy(hf_dir, layout, topology)
    batches = rank_batches(topology, layout)
    train(policy, batches, 2)
    state = rank_state(policy)
    policy.save_checkpoint(out_dir / "foreground")
    policy.save_checkpoint(out_dir / "background", background=True)
    appeared_early = (out_dir / "background").exists()
    steps = train(policy, batches, 2)
    policy.finish_checkpoint()
    return {
        "state": state,
        "steps": steps,
        "final_state": rank_state(policy),
        "appeared_early": appeared_early,
        "names": sorted(path.name for path in out_dir.iterdir()),
    }


def go_on(topology: Topology, layout: Layout, hf_dir: Path, checkpoints: list[Path]) -> list[dict[str, Any]]:
    """Per checkpoint: what was loaded, and two more steps."""
    results = []
    for checkpoint in checkpoints:
        policy = open_policy(hf_dir, layout, topology)
        policy.load_checkpoint(checkpoint)
        state = rank_state(policy)
        steps = train(policy, rank_batches(topology, layout), 2)
        results.append({"state": state, "steps": steps, "final_state": rank_state(policy)})
    return results


def refusals(topology: Topology, layout: Layout, hf_dir: Path, checkpoints: list[Path]) -> list[tuple[str, bool]]:
    """Per checkpoint, the error of loading it, and whether the policy stayed as it was."""
    policy = open_policy(hf_dir, layout, topology)
    before = rank_state(policy)
    results = []
    for checkpoint in checkpoints:
        try:
            policy.load_checkpoint(checkpoint)
        except ValueError as error:
            results.append((f"{type(error).__name__}: {error}", equal_bits(rank_state(policy), before)))
    return results


def refusals_for_reading(topology: Topology, layout: Layout, checkpoints: list[Path]) -> list[str]:
    """Per checkpoint, the error of loading its weights alone into the model that it describes."""
    results = []
    for checkpoint in checkpoints:
        policy = MegatronPolicy(
            str(checkpoint / "hf"), layout, topology, dtype=torch.float32, optimizer=None, load_weights=False
        )
        try:
            policy.load_checkpoint(checkpoint)
        except ValueError as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


def open_for_reading(topology: Topology, layout: Layout, checkpoint: Path, out_dir: Path) -> dict[str, Any]:
    """Loads the weights of a checkpoint alone, from its own config, and writes them for transformers."""
    policy = MegatronPolicy(
        str(checkpoint / "hf"), layout, topology, dtype=torch.float32, optimizer=None, load_weights=False
    )
    policy.load_checkpoint(checkpoint)
    policy.save_hf(out_dir)
    logprobs = policy.logprobs(rank_batches(topology, layout), temperature=1.0)
    return {"weights": exported(policy), "logprobs": logprobs}


def leave_and_return(
    topology: Topology, layout: Layout, hf_dir: Path, dtype: torch.dtype, out_dir: Path
) -> dict[str, Any]:
    """Steps with and without a stay on the host in between, what is refused meanwhile, and the reference after it."""
    batches = rank_batches(topology, layout)
    stayed = open_policy(hf_dir, layout, topology, dtype=dtype)
    left = open_policy(hf_dir, layout, topology, dtype=dtype)
    for policy in (stayed, left):
        train(policy, batches, 1)
    left.keep_reference()
    at_reference = left.logprobs(batches, temperature=TEMPERATURE, with_entropy=True)
    train(left, batches, 1)
    train(stayed, batches, 1)
    before, sizes = rank_state(left), {part: left.training.residency.num_bytes(part) for part in _PARTS}
    away = left.to_host()
    resident_while_away = sum(parameter.untyped_storage().nbytes() for parameter in left.model.parameters())
    refused = []
    for call in (
        lambda: left.as_reference().__enter__(),
        lambda: left.logprobs(batches, temperature=1.0),
        lambda: train(left, batches, 1),
        lambda: list(left.export_tensors()),
        lambda: left.save_checkpoint("nowhere"),
    ):
        try:
            call()
        except ResidencyError as error:
            refused.append(str(error))
    back = [left.to_device("weights"), left.to_device()]
    return {
        "away": away,
        "again": left.to_device(),
        "back": back,
        "resident_while_away": resident_while_away,
        "sizes": sizes,
        "expected_sizes": _count_bytes(left),
        "refused": refused,
        "equal": equal_bits(before, rank_state(left)),
        "reference": exchange_reference(left, batches, out_dir / "reference"),
        "at_reference": at_reference,
        "steps": [train(stayed, batches, 2), train(left, batches, 2)],
        "states": [rank_state(stayed), rank_state(left)],
    }


_PARTS = ("weights", "gradients", "optimizer")


def _count_bytes(policy: MegatronPolicy) -> dict[str, int]:
    """The same, from Megatron's buffers and the optimizer's tensors."""
    buffers = [buffer for chunk in policy.training.chunks for buffer in chunk.buffers]
    optimizer = 0
    for member in distributed_optimizers(policy.training.optimizer):
        for group in member.optimizer.param_groups:
            for main_param in group["params"]:
                state = member.optimizer.state[main_param]
                optimizer += state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes
                optimizer += main_param.nbytes if policy.model.config.bf16 else 0
    weights = sum(buffer.param_data.nbytes for buffer in buffers)
    return {"weights": weights, "gradients": sum(b.grad_data.nbytes for b in buffers), "optimizer": optimizer}


def offload_activations(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """Two steps with everything that forward saves moved, against two without."""
    batches = rank_batches(topology, layout)
    plain, offloading = (open_policy(hf_dir, layout, topology) for _ in range(2))
    hooks = ActivationOffload(offloading.model.parameters(), min_bytes=1024)
    offloading.activation_offload = hooks
    return {
        "steps": [train(policy, batches, 2) for policy in (plain, offloading)],
        "states": [rank_state(policy) for policy in (plain, offloading)],
        "moved_bytes": hooks.moved_bytes,
    }


def offload_after_a_stay_on_the_host(topology: Topology, layout: Layout, hf_dir: Path) -> list[int]:
    """Bytes of activations moved by a step before and by one after the weights have been away."""
    batches = rank_batches(topology, layout)
    policy = open_policy(hf_dir, layout, topology)
    hooks = ActivationOffload(policy.model.parameters(), min_bytes=1024)
    policy.activation_offload = hooks
    train(policy, batches, 1)
    before = hooks.moved_bytes
    policy.to_host()
    policy.to_device()
    train(policy, batches, 1)
    return [before, hooks.moved_bytes - before]


class LazyAdam:
    """In the manner of Transformer Engine's FusedAdam: moments are made in the first step, new ones by a load."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        self.state: defaultdict[torch.Tensor, dict[str, torch.Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state = self.state[parameter]
                state["exp_avg"].lerp_(parameter.grad, 0.1)
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 0.1)
                parameter.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt() + 1e-3, value=-group["lr"])


def move_a_fused_optimizer(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """Bytes of the optimizer that leave the device: at the start, after a step, and after a load made new tensors."""
    batches = rank_batches(topology, layout)
    policy = open_policy(hf_dir, layout, topology)
    (member,) = distributed_optimizers(policy.training.optimizer)
    member.optimizer = LazyAdam(member.optimizer.param_groups)
    has_state = bool(member.optimizer.state)
    mend_optimizer(policy.training.optimizer)
    expected = 2 * sum(p.nbytes for group in member.optimizer.param_groups for p in group["params"])
    freed = [stay_on_host(policy)]
    train(policy, batches, 1)
    freed.append(stay_on_host(policy))
    for state in member.optimizer.state.values():
        for name in state:
            state[name] = state[name].clone()
    freed.append(stay_on_host(policy))
    return {"expected": expected, "freed": freed, "state_before": has_state}


def stay_on_host(policy: MegatronPolicy) -> int:
    freed = policy.to_host("optimizer").freed_bytes
    policy.to_device()
    return freed


def save_for_ever(hf_dir: Path, directory: Path, ready: Any, background: bool) -> None:
    """Loads the latest checkpoint, if any, then trains and saves until it is killed. Says when it has loaded."""
    start_rank()
    layout = Layout()
    topology = init_distributed(0, 1, "127.0.0.1", free_port(), layout, seed=7, timeout_s=60)
    policy = open_policy(hf_dir, layout, topology)
    whole = sorted(commit.list_committed(directory))
    number = 0
    if whole:
        policy.load_checkpoint(whole[-1])
        number = int(whole[-1].name)
    batches = rank_batches(topology, layout)
    ready.set()
    while True:
        number += 1
        train(policy, batches, 1)
        policy.save_checkpoint(directory / f"{number:06d}", background=background)
        commit.keep_last(sorted(commit.list_committed(directory)), 2)


def start_saving(hf_dir: Path, directory: Path, background: bool) -> tuple[Any, Any]:
    """`save_for_ever` in a process that starts at once: forked from the one that launch.py keeps, with all imported."""
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=save_for_ever, args=(hf_dir, directory, ready, background))
    process.start()
    return process, ready
