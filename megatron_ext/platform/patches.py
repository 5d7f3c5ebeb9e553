"""Patches beside the stand-in `torch`: one per fault, with its reason and the test that says when it can go.

Each is applied once: to torch by `install()`, to a `megatron.core` module right after it was executed. Nothing is
applied where there is what it makes up for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from megatron_ext.platform.patch import Patch, patch


@patch("torch", "Tensor.cuda", drop_test="test_upstream_calls_cuda_on_tensors")
def keep_tensors_here(module: ModuleType) -> None:
    """`Tensor.cuda()` gives the tensor itself: Megatron calls it on small tensors it has just made.

    A build without CUDA can only raise there, so nothing that worked before changes.
    """
    module.Tensor.cuda = lambda self, *args, **kwargs: self


@patch(
    "megatron.core.jit", "disable_jit_fuser", "jit_fuser", drop_test="test_upstream_compiles_what_it_calls_jit_fused"
)
def turn_compiling_off(module: ModuleType) -> None:
    """`jit_fuser` (torch.compile) does nothing: on a CPU it needs a C++ compiler, and seconds for each function."""
    module.disable_jit_fuser()


@patch(
    "megatron.core.tensor_parallel.random",
    "_get_cuda_rng_state",
    "_set_cuda_rng_state",
    "CudaRNGStatesTracker",
    "_MODEL_PARALLEL_RNG_TRACKER_NAME",
    drop_test="test_upstream_asks_cuda_for_random_states",
)
def track_cpu_generator(module: ModuleType) -> None:
    """Named random states are states of torch's CPU generator: upstream reads and writes those of a CUDA device.

    Its `fork` also warns when the CPU generator has moved meanwhile; here the two are one.
    """
    default_name = module._MODEL_PARALLEL_RNG_TRACKER_NAME

    class CpuRNGStatesTracker(module.CudaRNGStatesTracker):
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


@patch(
    "megatron.core.optimizer.distrib_optimizer",
    "DistributedOptimizer._build_model_and_main_param_groups",
    drop_test="test_upstream_optimizer_refuses_cpu_parameters",
)
def accept_cpu_parameters(module: ModuleType) -> None:
    """The optimizer recognises CPU parameters: it sorts them by the literal names 'torch.cuda.FloatTensor' etc."""
    optimizer_class = module.DistributedOptimizer
    optimizer_class.__init__ = _with_cuda_type_names(optimizer_class.__init__)


def _with_cuda_type_names(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run while `Tensor.type()` says 'torch.cuda.FloatTensor' of a CPU tensor, float64 ones included.

    So a float64 parameter is its own master weight, as a float32 one is.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        original = torch.Tensor.type

        def type_name(self: torch.Tensor, *type_args: Any, **type_kwargs: Any) -> Any:
            result = original(self, *type_args, **type_kwargs)
            if not isinstance(result, str):
                return result
            return result.replace("torch.", "torch.cuda.", 1).replace("DoubleTensor", "FloatTensor")

        torch.Tensor.type = type_name  # type: ignore[method-assign]
        try:
            return function(*args, **kwargs)
        finally:
            torch.Tensor.type = original  # type: ignore[method-assign]

    return wrapped


@patch(
    "megatron.core.tensor_parallel.mappings",
    "_gather_along_first_dim",
    drop_test="test_upstream_gathers_unequal_parts_as_gloo_cannot",
)
def gather_unequal_parts(module: ModuleType) -> None:
    """Parts of unequal length are gathered with padding: gloo refuses them as they are, NCCL does not.

    Expert tensor parallel ranks gather as many tokens as the router happens to send to each.
    """
    gather = module._gather_along_first_dim

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

    module.__dict__["_gather_along_first_dim"] = gather_parts


@patch(
    "megatron.core.transformer.moe.moe_utils",
    "maybe_move_tensor_to_cpu",
    drop_test="test_upstream_leaves_split_sizes_on_the_cpu_as_tensors",
)
def give_split_sizes_as_numpy(module: ModuleType) -> None:
    """The all-to-all of expert parallel takes split sizes that are on the CPU already.

    Upstream turns them into the numpy array that `all_to_all_single` needs only on the way from a GPU.
    """
    move_to_cpu = module.maybe_move_tensor_to_cpu

    @functools.wraps(move_to_cpu)
    def move(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if as_numpy and torch.is_tensor(tensor) and not tensor.is_cuda:
            return tensor.numpy()
        return move_to_cpu(tensor, as_numpy, record_stream)

    module.__dict__["maybe_move_tensor_to_cpu"] = move


@patch(
    "megatron.core.transformer.moe.moe_utils",
    "RouterGatingLinearFunction.forward",
    drop_test="test_upstream_router_needs_a_name_of_transformer_engine",
)
def name_missing_product(module: ModuleType) -> None:
    """`te_general_gemm` is None: the router asks whether it is, but only Transformer Engine brings the name in."""
    if "te_general_gemm" not in module.RouterGatingLinearFunction.forward.__code__.co_names:
        raise name_missing_product.missing("te_general_gemm")
    module.__dict__["te_general_gemm"] = None


WITHOUT_CUDA: tuple[Patch, ...] = (
    keep_tensors_here,
    turn_compiling_off,
    track_cpu_generator,
    accept_cpu_parameters,
    gather_unequal_parts,
    give_split_sizes_as_numpy,
)
"""For a machine without CUDA."""

WITHOUT_TRANSFORMER_ENGINE: tuple[Patch, ...] = (name_missing_product,)
"""For an installation without Transformer Engine, with CUDA too."""
