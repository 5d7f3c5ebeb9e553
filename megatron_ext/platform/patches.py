"""What the stand-in `torch` cannot cover: one function per `megatron.core` module, with its reason.

Each is applied once, right after the module was executed, and only where there is no CUDA.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from megatron_ext.platform.errors import PlatformError


def require_symbol(owner: Any, name: str) -> Any:
    """`owner.name`; raises PlatformError naming the symbol when it is gone."""
    if not hasattr(owner, name):
        where = getattr(owner, "__name__", repr(owner))
        raise PlatformError(
            f"{where}.{name} does not exist in the installed megatron-core, but the CPU platform patches it. "
            "Install a supported version."
        )
    return getattr(owner, name)


def patch_jit(module: ModuleType) -> None:
    """Turns `jit_fuser` (torch.compile) off: on a CPU it needs a C++ compiler and seconds for each fused function."""
    require_symbol(module, "disable_jit_fuser")()


def patch_random(module: ModuleType) -> None:
    """Points Megatron's RNG bookkeeping at torch's CPU generator.

    Upstream forks the CUDA generator and asserts that the CPU one did not move meanwhile; here they are the same one.
    """
    require_symbol(module, "_get_cuda_rng_state")
    require_symbol(module, "_set_cuda_rng_state")
    tracker_class = require_symbol(module, "CudaRNGStatesTracker")
    default_name = require_symbol(module, "_MODEL_PARALLEL_RNG_TRACKER_NAME")

    class CpuRNGStatesTracker(tracker_class):
        """Named states of the one CPU generator."""

        @contextlib.contextmanager
        def fork(self, name: str = default_name) -> Iterator[None]:
            """Draws from the named state inside, and from the outer one again afterwards. KeyError if unknown."""
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    def get_state(device: Any = "cuda", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    module.__dict__.update(
        CudaRNGStatesTracker=CpuRNGStatesTracker, _get_cuda_rng_state=get_state, _set_cuda_rng_state=set_state
    )


def patch_distributed_optimizer(module: ModuleType) -> None:
    """Lets the optimizer recognise CPU parameters: it sorts them by the literal names 'torch.cuda.FloatTensor' etc."""
    optimizer_class = require_symbol(module, "DistributedOptimizer")
    require_symbol(optimizer_class, "_build_model_and_main_param_groups")
    optimizer_class.__init__ = _with_cuda_type_names(optimizer_class.__init__)


def _with_cuda_type_names(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run while `Tensor.type()` says 'torch.cuda.FloatTensor' of a CPU tensor."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        original = torch.Tensor.type

        def type_name(self: torch.Tensor, *type_args: Any, **type_kwargs: Any) -> Any:
            result = original(self, *type_args, **type_kwargs)
            return result.replace("torch.", "torch.cuda.", 1) if isinstance(result, str) else result

        torch.Tensor.type = type_name  # type: ignore[method-assign]
        try:
            return function(*args, **kwargs)
        finally:
            torch.Tensor.type = original  # type: ignore[method-assign]

    return wrapped


def patch_mappings(module: ModuleType) -> None:
    """Gathers and reduce-scatters parts of unequal length, which gloo refuses and NCCL does not.

    Expert tensor parallel ranks exchange as many tokens as the router happens to send to each.
    """
    gather = require_symbol(module, "_gather_along_first_dim")
    reduce_scatter = require_symbol(module, "_reduce_scatter_along_first_dim")

    @functools.wraps(gather)
    def gather_parts(
        input_: torch.Tensor, group: Any, output_split_sizes: list[int] | None = None, use_global_buffer: bool = False
    ) -> torch.Tensor:
        if output_split_sizes is None or group.size() == 1:
            return gather(input_, group, output_split_sizes, use_global_buffer)
        padded = input_.new_zeros((max(output_split_sizes), *input_.shape[1:]))
        padded[: input_.size(0)] = input_
        parts = [torch.empty_like(padded) for _ in output_split_sizes]
        torch.distributed.all_gather(parts, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(parts, output_split_sizes, strict=True)])

    @functools.wraps(reduce_scatter)
    def reduce_scatter_parts(
        input_: torch.Tensor, group: Any, input_split_sizes: list[int] | None = None, use_global_buffer: bool = False
    ) -> torch.Tensor:
        if input_split_sizes is None or group.size() == 1:
            return reduce_scatter(input_, group, input_split_sizes, use_global_buffer)
        total = input_.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total, group=group)
        return total.split(input_split_sizes)[group.rank()].clone()

    module.__dict__.update(_gather_along_first_dim=gather_parts, _reduce_scatter_along_first_dim=reduce_scatter_parts)


def patch_moe_utils(module: ModuleType) -> None:
    """Lets the all-to-all of expert parallel take split sizes that are on the CPU already.

    Upstream turns them into the numpy array that `all_to_all_single` needs only on the way from a GPU.
    """
    move_to_cpu = require_symbol(module, "maybe_move_tensor_to_cpu")

    @functools.wraps(move_to_cpu)
    def move(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if as_numpy and torch.is_tensor(tensor) and not tensor.is_cuda:
            return tensor.numpy()
        return move_to_cpu(tensor, as_numpy, record_stream)

    module.__dict__["maybe_move_tensor_to_cpu"] = move


PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "megatron.core.jit": patch_jit,
    "megatron.core.tensor_parallel.mappings": patch_mappings,
    "megatron.core.tensor_parallel.random": patch_random,
    "megatron.core.optimizer.distrib_optimizer": patch_distributed_optimizer,
    "megatron.core.transformer.moe.moe_utils": patch_moe_utils,
}
