"""Process groups: made here, and read from Megatron's parallel state here only.

Everything else in the library takes a `Topology`.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_ext import platform
from megatron_ext.parallel.layout import Layout, LayoutError, check_layout, check_values
from megatron_ext.parallel.meeting import forget_token, open_store, prove_membership, require_token
from megatron_ext.platform.device import Device, find_device

platform.install()

from megatron.core import parallel_state, tensor_parallel  # noqa: E402

__all__ = ["Layout", "LayoutError", "Topology", "check_layout", "init_distributed", "shutdown_distributed"]


@dataclass(frozen=True)
class Topology:
    """Where this process stands. Groups are torch process groups that contain this rank."""

    rank: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    cp_rank: int
    cp_size: int
    dp_rank: int
    dp_size: int
    tp_group: dist.ProcessGroup
    pp_group: dist.ProcessGroup
    cp_group: dist.ProcessGroup
    dp_group: dist.ProcessGroup
    """Every replica of this rank's weights: data parallel x context parallel ranks, context fastest."""
    ep_rank: int
    ep_size: int
    etp_rank: int
    etp_size: int
    expert_group: dist.ProcessGroup
    """The ep x etp ranks that hold all parts of all experts of a stage, etp fastest."""
    last_stage_rank: int
    """Global rank of the last stage of this rank's pipeline."""
    device: torch.device

    @property
    def computes_on(self) -> Device:
        """The kind of `device`."""
        return Device(self.device.type == "cuda")

    @property
    def replica_rank(self) -> int:
        """Rank within `dp_group`: of the ranks that hold the same weights, 0 is the one that writes them."""
        return self.dp_rank * self.cp_size + self.cp_rank

    @property
    def num_replicas(self) -> int:
        return self.dp_size * self.cp_size

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1


def init_distributed(
    rank: int,
    world_size: int,
    master_addr: str,
    master_port: int,
    layout: Layout,
    seed: int,
    timeout_s: float = 600.0,
    token: str = "",
) -> Topology:
    """Joins the process group (NCCL with CUDA, else gloo), makes Megatron's groups and seeds this process.

    Ranks meet at `master_addr`, an address of rank 0's machine, on which alone it listens; or, with `master_port` 0, in
    a new file of that path, in a folder that nobody else may enter. With CUDA each computes on the current device of
    the calling thread. With a `token` they prove that they know it, see
    `meeting`.

    Blocks until all `world_size` processes have called it. Raises LayoutError when the layout asks for another number
    of processes or cannot be for any model; torch's DistStoreError or a timeout when some process does not come;
    StrangerError when one comes without the token.
    """
    check_values(layout)
    if layout.world_size != world_size:
        raise LayoutError(
            f"tp x cp x dp x pp = {layout.tp} x {layout.cp} x {layout.dp} x {layout.pp} = {layout.world_size}: "
            f"it must equal the {world_size} processes; change dp or the number of processes"
        )
    computes_on = find_device()
    device = computes_on.current
    dist.init_process_group(
        computes_on.backend,
        store=open_store(master_addr, master_port, rank, world_size, timeout_s),
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
        # Else NCCL takes a guess from the rank in each collective that has no tensor.
        device_id=device if computes_on.has_cuda else None,
    )
    if token:
        require_token(token)
        prove_membership(rank, world_size, device)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        virtual_pipeline_model_parallel_size=layout.vpp if layout.vpp > 1 else None,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=layout.etp,
        distributed_timeout_minutes=math.ceil(timeout_s / 60),
    )
    # Megatron names its CUDA generator by rank; on a CPU the platform points it at torch's only generator.
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return _read_topology(device)


def shutdown_distributed() -> None:
    """Leaves the process group. Does nothing when there is none."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        forget_token()


def _read_topology(device: torch.device) -> Topology:
    return Topology(
        rank=dist.get_rank(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        tp_size=parallel_state.get_tensor_model_parallel_world_size(),
        pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pp_size=parallel_state.get_pipeline_model_parallel_world_size(),
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=parallel_state.get_context_parallel_world_size(),
        dp_rank=parallel_state.get_data_parallel_rank(),
        dp_size=parallel_state.get_data_parallel_world_size(),
        tp_group=parallel_state.get_tensor_model_parallel_group(),
        pp_group=parallel_state.get_pipeline_model_parallel_group(),
        cp_group=parallel_state.get_context_parallel_group(),
        dp_group=parallel_state.get_data_parallel_group(with_context_parallel=True),
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        ep_size=parallel_state.get_expert_model_parallel_world_size(),
        etp_rank=parallel_state.get_expert_tensor_parallel_rank(),
        etp_size=parallel_state.get_expert_tensor_parallel_world_size(),
        expert_group=parallel_state.get_expert_tensor_and_model_parallel_group(),
        last_stage_rank=parallel_state.get_pipeline_model_parallel_last_rank(),
        device=device,
    )
