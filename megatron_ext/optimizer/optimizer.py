"""AdamW over Megatron's distributed optimizer, with a step that refuses non-finite gradients; policies in float64.

Float64 is for tests and for reference log-probabilities. Megatron-Core knows float32 and less. Where it says
`.float()`, or divides by a count, it means "at least float32"; a float64 policy computes inside
`arithmetic_of(torch.float64)`, where that is so. Tables of rotary angles stay in float32: they are the model's, see
`rotary`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megatron_ext import platform
from megatron_ext.kernels.choice import Library
from megatron_ext.kernels.upstream import take_adam
from megatron_ext.model.policy_model import PolicyModel
from megatron_ext.optimizer.repairs import distributed_optimizers, mend_optimizer
from megatron_ext.parallel.layout import Layout
from megatron_ext.platform.patch import patch

platform.install()

from megatron.core.distributed import (  # noqa: E402
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer  # noqa: E402


@contextmanager
def arithmetic_of(dtype: torch.dtype) -> Iterator[None]:
    """Inside, with float64, new tensors are float64 and `Tensor.float()` leaves float64 alone. Else nothing changes."""
    if dtype != torch.float64:
        yield
        return
    default, to_float = torch.get_default_dtype(), torch.Tensor.float

    def at_least_float(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self if self.dtype == torch.float64 else to_float(self, *args, **kwargs)

    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = at_least_float  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.float = to_float  # type: ignore[method-assign]
        torch.set_default_dtype(default)


def double_grad_norm(members: list[MegatronOptimizer]) -> float:
    """Global L2 norm of the gradients in float64. Upstream's own is float32 whatever the gradients are. Collective."""
    total = 0.0
    for member in members:
        grads = member.get_main_grads_for_grad_norm()
        squares = sum((grad.square().sum() for grad in grads), torch.zeros((), dtype=torch.float64))
        dist.all_reduce(squares, group=member.get_grad_stats_parallel_group())
        total += squares.item()
    return total**0.5


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW. Biases and norms get no weight decay."""

    lr: float = 1e-6
    """Used until a step names another."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 means no clipping."""


@dataclass(frozen=True)
class StepResult:
    """The result of an optimizer step."""

    grad_norm: float
    """Global norm before clipping; may be inf or nan, then the step was skipped."""
    skipped: bool


def wrap_data_parallel(chunks: Sequence[PolicyModel], layout: Layout) -> list[DistributedDataParallel]:
    """The chunks with contiguous gradient buffers, reduced over the ranks that hold the same weights.

    Buffers are float32, or float64 where the weights are. The exchange happens after backward or, with
    `layout.overlap`, bucket by bucket while it runs.
    """
    config = chunks[0].config
    wrapped = []
    for number, chunk in enumerate(chunks):
        ddp_config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=config.params_dtype != torch.float64,
            use_distributed_optimizer=True,
            overlap_grad_reduce=layout.overlap,
            overlap_param_gather=layout.overlap,
            bucket_size=layout.bucket_elements,
        )
        # Later chunks of a virtual pipeline go as one bucket: their reduction is hidden behind the chunks before.
        wrapped.append(DistributedDataParallel(config, ddp_config, chunk, disable_bucketing=number > 0))
        if not layout.overlap:
            for group in [*wrapped[-1].bucket_groups, *wrapped[-1].expert_parallel_bucket_groups]:
                skip_exchange_of_one(group)
    config.finalize_model_grads_func = finalize_model_grads
    no_sync = [chunk.no_sync for chunk in wrapped]
    config.no_sync_func = no_sync if len(wrapped) > 1 else no_sync[0]
    if layout.overlap and len(wrapped) > 1:
        config.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
        config.param_sync_func = [chunk.start_param_sync for chunk in wrapped]
    return wrapped


@patch(
    "megatron.core.distributed.param_and_grad_buffer._ParamAndGradBucketGroup",
    "start_grad_sync",
    "start_param_sync",
    "intra_distributed_optimizer_instance_size",
    drop_test="test_upstream_exchanges_with_itself",
)
def skip_exchange_of_one(group: Any) -> None:
    """Where no other rank holds the same weights nothing is exchanged: upstream copies everything to itself."""
    if group.intra_distributed_optimizer_instance_size == 1:
        group.start_grad_sync = lambda force_all_reduce=False: None
        group.start_param_sync = lambda force_sync=False: None


def finish_weight_gather(chunks: Sequence[DistributedDataParallel], layout: Layout) -> None:
    """Ends a gather of updated weights that `layout.overlap` left to the next forward. Collective.

    To be called before weights are read in any other way than by a forward pass.
    """
    if layout.overlap:
        for chunk in chunks:
            chunk.start_param_sync(force_sync=True)


def build_optimizer(
    chunks: Sequence[DistributedDataParallel], options: OptimizerOptions, layout: Layout, library: Library = "torch"
) -> MegatronOptimizer:
    """A fresh optimizer, computed by `library`; its float32 master weights are the model's weights as they are now."""
    take_adam(library)
    model_config = chunks[0].config
    config = OptimizerConfig(
        optimizer="adam",
        lr=options.lr,
        min_lr=options.lr,
        weight_decay=options.weight_decay,
        adam_beta1=options.betas[0],
        adam_beta2=options.betas[1],
        adam_eps=options.eps,
        clip_grad=options.clip_grad,
        params_dtype=model_config.params_dtype,
        bf16=model_config.bf16,
        use_distributed_optimizer=True,
        overlap_param_gather=layout.overlap,
    )
    optimizer = get_megatron_optimizer(config, list(chunks))
    mend_optimizer(optimizer)
    _apply_options(optimizer, options)
    return optimizer


@torch.no_grad()
def reset_optimizer(optimizer: MegatronOptimizer, options: OptimizerOptions) -> None:
    """Back to zero moments and step 0, with new options; the master weights, and their precision, stay."""
    _apply_options(optimizer, options)
    for member in distributed_optimizers(optimizer):
        for state in member.optimizer.state.values():
            for value in state.values():
                value.zero_()
        for group in member.optimizer.param_groups:
            if "step" in group:  # a fused AdamW counts steps here
                group["step"] = 0


def _apply_options(optimizer: MegatronOptimizer, options: OptimizerOptions) -> None:
    for group in optimizer.param_groups:
        group["lr"] = options.lr * group["lr_mult"]
        group["betas"] = options.betas
        group["eps"] = options.eps
        # Upstream leaves this to its learning rate scheduler, which we do not use.
        group["weight_decay"] = options.weight_decay * group["wd_mult"]
    optimizer.config.clip_grad = options.clip_grad


@torch.no_grad()
def optimizer_step(optimizer: MegatronOptimizer, lr: float, *, loss: float = 0.0) -> StepResult:
    """Clips the gradients to the configured norm and takes one AdamW step at `lr`.

    A non-finite norm, or a non-finite `loss` (give the global one), leaves weights and optimizer state as they were.
    The norm is global, so every rank decides alike.
    """
    optimizer.prepare_grads()
    if optimizer.config.params_dtype == torch.float64:
        grad_norm = double_grad_norm(list(distributed_optimizers(optimizer)))
    else:
        grad_norm = float(optimizer.get_grad_norm())
    if not (math.isfinite(grad_norm) and math.isfinite(loss)):
        return StepResult(grad_norm=grad_norm, skipped=True)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
    clip_grad = optimizer.config.clip_grad
    if 0 < clip_grad < grad_norm:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch._foreach_mul_(grads, clip_grad / (grad_norm + 1e-6))
    optimizer.step_with_ready_grads()
    return StepResult(grad_norm=grad_norm, skipped=False)
