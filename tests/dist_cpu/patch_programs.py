"""Programs of test_patches.py and test_pipeline_exchange.py: upstream's code without a patch or guard."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_ext import schedule
from megatron_ext.optimizer import optimizer
from megatron_ext.optimizer import repairs as optimizer_repairs
from megatron_ext.optimizer.repairs import distributed_optimizers
from megatron_ext.packing.micro_batch import PackInput
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology, init_distributed
from megatron_ext.platform.patch import Patch
from megatron_ext.policy import MegatronPolicy
from tests.dist_cpu.rank_programs import open_policy, pack_rows, rank_batches, train
from tests.ports import free_port

from megatron.core.dist_checkpointing.strategies import filesystem_async  # isort: skip
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest, TemporalAsyncCaller  # isort: skip
from megatron.core.distributed import param_and_grad_buffer  # isort: skip
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # isort: skip
from megatron.core.tensor_parallel import mappings  # isort: skip

REPAIRS = (*optimizer_repairs.REPAIRS, *optimizer_repairs.REPAIRS_WITH_TORCH_ADAMW)


def complaint(call: Callable[[], Any]) -> str:
    """Type and message of the exception that `call` ends with; empty when there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def one_rank(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """Upstream without each patch where there is one process, and what each repair replaces."""
    overlapping = Layout(overlap=True, bucket_elements=20_000)
    return {
        "built": build_with_upstream_types(hf_dir, layout, topology),
        "saved": save_at_once(hf_dir, layout, topology),
        "loaded": load_a_state(hf_dir, layout, topology),
        "step_counts": count_steps_after_loading(hf_dir, layout, topology),
        "misplaced": misplaced_parameters(hf_dir, overlapping, topology),
        "gathered": gather_with_upstream_cuda(hf_dir, layout, topology),
        "exchanges": count_exchanges(hf_dir, layout, topology),
        "replaced": replaced_by_repairs(hf_dir, layout, topology),
    }


def open_without(
    repairs: tuple[Patch, ...], hf_dir: Path, layout: Layout, topology: Topology
) -> tuple[MegatronPolicy, DistributedOptimizer]:
    """A policy whose optimizer lacks some repairs, and that optimizer."""
    kept = {
        name: tuple(repair for repair in getattr(optimizer_repairs, name) if repair not in repairs)
        for name in ("REPAIRS", "REPAIRS_WITH_TORCH_ADAMW")
    }
    with pytest.MonkeyPatch.context() as change:
        for name, repairs_kept in kept.items():
            change.setattr(optimizer_repairs, name, repairs_kept)
        policy = open_policy(hf_dir, layout, topology)
    (member,) = distributed_optimizers(policy.training.optimizer)
    return policy, member


def build_with_upstream_types(hf_dir: Path, layout: Layout, topology: Topology) -> str:
    with pytest.MonkeyPatch.context() as change:
        change.setattr(DistributedOptimizer, "__init__", DistributedOptimizer.__init__.__wrapped__)
        return complaint(lambda: open_policy(hf_dir, layout, topology))


def save_at_once(hf_dir: Path, layout: Layout, topology: Topology) -> list[str]:
    """Before any step: without the repair, and with it."""
    _, member = open_without((optimizer_repairs.fill_initial_state,), hf_dir, layout, topology)
    theirs = complaint(member.state_dict)
    optimizer_repairs.fill_initial_state(member)
    return [theirs, complaint(member.state_dict)]


def load_a_state(hf_dir: Path, layout: Layout, topology: Topology) -> list[str]:
    """A parameter's state: without a step, as it comes from a checkpoint; whole; and without a step by the repair."""
    _, member = open_without((optimizer_repairs.load_state_without_step,), hf_dir, layout, topology)
    parameter = next(iter(member.model_param_group_index_map))
    state = member._get_main_param_and_optimizer_states(parameter)
    saved = {name: value for name, value in state.items() if name != "step"}
    load = member._set_main_param_and_optimizer_states
    theirs = [complaint(lambda: torch.no_grad()(load)(parameter, saved)), complaint(lambda: load(parameter, state))]
    optimizer_repairs.load_state_without_step(member)
    return [*theirs, complaint(lambda: member._set_main_param_and_optimizer_states(parameter, saved))]


def count_steps_after_loading(hf_dir: Path, layout: Layout, topology: Topology) -> list[float]:
    """The number that one step after loading adds to the step counts: without the repair, and with it."""
    policy, member = open_without((optimizer_repairs.separate_step_counts,), hf_dir, layout, topology)
    micro_batches = rank_batches(topology, layout)

    def added() -> float:
        member.load_state_dict(member.state_dict())
        before = step_count(member)
        train(policy, micro_batches, 1)
        return step_count(member) - before

    theirs = added()
    optimizer_repairs.separate_step_counts(member)
    return [theirs, added()]


def step_count(member: DistributedOptimizer) -> float:
    """The step count of every parameter; ValueError when they differ."""
    (count,) = {state["step"].item() for state in member.optimizer.state.values()}
    return count


def misplaced_parameters(hf_dir: Path, layout: Layout, topology: Topology) -> list[int]:
    """How many parameters are not where upstream looks for them in the gathered state: without the repair, with it."""
    _, member = open_without((optimizer_repairs.keep_bucket_padding,), hf_dir, layout, topology)

    def count() -> int:
        state = member.get_parameter_state_dp_zero(use_gloo_comm=False)
        return sum(
            not torch.equal(tensors["param"][start:end], parameter.flatten())
            for index, buffer in enumerate(member.buffers)
            for tensors in state[index].values()
            for parameter, (start, end, _) in buffer.param_index_map.items()
        )

    theirs = count()
    optimizer_repairs.keep_bucket_padding(member)
    return [theirs, count()]


def gather_with_upstream_cuda(hf_dir: Path, layout: Layout, topology: Topology) -> str:
    _, member = open_without((), hf_dir, layout, topology)
    with pytest.MonkeyPatch.context() as change:
        change.delattr(torch.Tensor, "cuda")  # what torch's own base class has is left
        return complaint(lambda: member.get_parameter_state_dp_zero(use_gloo_comm=False))


def count_exchanges(hf_dir: Path, layout: Layout, topology: Topology) -> list[int]:
    """Collectives of a training step over groups of one process: upstream's, and ours."""
    counts = []
    for skip in (lambda group: None, optimizer.skip_exchange_of_one):
        calls: list[str] = []
        with pytest.MonkeyPatch.context() as change:
            change.setattr(optimizer, "skip_exchange_of_one", skip)
            for name in ("dist_reduce_scatter_func", "dist_all_gather_func"):
                change.setattr(param_and_grad_buffer, name, _counting(name, calls))
            train(open_policy(hf_dir, layout, topology), rank_batches(topology, layout), 1)
        counts.append(len(calls))
    return counts


def _counting(name: str, calls: list[str]) -> Callable[..., Any]:
    """Upstream's function, with its calls written down."""
    function = getattr(param_and_grad_buffer, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return function(*args, **kwargs)

    return call


def replaced_by_repairs(hf_dir: Path, layout: Layout, topology: Topology) -> dict[str, set[str]]:
    """Names of the attributes that each repair replaces, and `skip_exchange_of_one`."""
    with pytest.MonkeyPatch.context() as change:
        change.setattr(optimizer, "skip_exchange_of_one", lambda group: None)
        policy, member = open_without(REPAIRS, hf_dir, layout, topology)
    owners: list[tuple[Patch, Any]] = [(repair, member) for repair in REPAIRS]
    owners.append((optimizer.skip_exchange_of_one, policy.training.chunks[0].bucket_groups[0]))
    return {patch.change.__name__: changes(patch, owner) for patch, owner in owners}


def changes(patch: Patch, owner: Any) -> set[str]:
    """Names that mean something else, or that are new, in `owner` and in its classes after `patch`."""

    def snapshot() -> dict[str, Any]:
        return {name: (id(value), _attributes(value)) for name, value in vars(owner).items()}

    before = snapshot()
    patch(owner)
    return {name for name, value in snapshot().items() if before.get(name) != value}


def _attributes(value: Any) -> dict[str, int]:
    return {name: id(attribute) for name, attribute in vars(value).items()} if isinstance(value, type) else {}


def exchange_unequal_parts(topology: Topology, layout: Layout) -> dict[str, Any]:
    """Two ranks gather 3 and 1 rows, weigh them and scatter the sum back; what upstream says to each exchange."""
    from megatron.core.tensor_parallel.mappings import (
        gather_from_sequence_parallel_region,
        reduce_scatter_to_sequence_parallel_region,
    )

    group, sizes, rank = topology.expert_group, [3, 1], topology.rank
    mine = torch.arange(2.0 * sizes[rank]).view(-1, 2).add(10 * rank).requires_grad_()
    whole = gather_from_sequence_parallel_region(mine, group=group, output_split_sizes=sizes)
    summed = reduce_scatter_to_sequence_parallel_region(whole * (rank + 1), group=group, input_split_sizes=sizes)
    (summed * (rank + 2)).sum().backward()

    gather = mappings._gather_along_first_dim.__wrapped__  # type: ignore[attr-defined]
    splits = torch.tensor([2, 2])
    return {
        "mine": mine.detach(),
        "whole": whole.detach(),
        "summed": summed.detach(),
        "grad": mine.grad,
        "gather": complaint(lambda: gather(mine.detach(), group, sizes)),
        "all_to_all": complaint(lambda: dist.all_to_all_single(torch.empty(4), torch.ones(4), splits, splits, group)),
    }


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


def start_upstream_writers(connection: Any) -> None:
    """Starts what a background save starts upstream, says the process ids, and waits to be killed."""
    layout = Layout()
    init_distributed(0, 1, "127.0.0.1", free_port(), layout, seed=7, timeout_s=60)
    server = filesystem_async._get_write_results_queue()._manager._process
    writer = TemporalAsyncCaller()
    writer.schedule_async_call(AsyncRequest(signal.pause, (), []))
    assert writer.process is not None
    connection.send([server.pid, writer.process.pid])
    signal.pause()
