"""Mends Megatron-Core 0.16.1's distributed optimizer where saving and loading lose or corrupt state.

The repairs are made on the object; upstream's classes stay as they are. With CUDA they are needed too: the first three
with torch.optim.AdamW, which upstream falls back to without Apex or Transformer Engine, the last with any AdamW.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_ext import platform
from megatron_ext.platform.patch import Patch, patch

platform.install()

from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer  # noqa: E402
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # noqa: E402

OWNER = "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer"


def distributed_optimizers(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """The optimizers that hold parameters, out of a chain or alone."""
    chain = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return [member for member in chain if isinstance(member, DistributedOptimizer) and not member.is_stub_optimizer]


def mend_optimizer(optimizer: MegatronOptimizer) -> None:
    """Applies the repairs to a new optimizer. Raises PlatformError when it lacks a symbol that one of them needs."""
    for member in distributed_optimizers(optimizer):
        for repair in REPAIRS:
            repair(member)
        if isinstance(member.optimizer, torch.optim.AdamW):
            for repair in REPAIRS_WITH_TORCH_ADAMW:
                repair(member)
        else:
            make_initial_state(member)


@patch(OWNER, "optimizer.state", "optimizer.param_groups", drop_test="test_upstream_cannot_save_before_the_first_step")
def fill_initial_state(member: DistributedOptimizer) -> None:
    """The state that AdamW makes at its first step is there from the start: zeros.

    Upstream's `state_dict` wants one `step` common to all parameters, so nothing could be saved or loaded before.
    """
    for group in member.optimizer.param_groups:
        for parameter in group["params"]:
            if not member.optimizer.state[parameter]:
                member.optimizer.state[parameter].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
                )


def make_initial_state(member: DistributedOptimizer) -> None:
    """A fused AdamW has its moments from the start, too: it makes them in its first step, after they were counted."""
    member.init_state_fn(member.optimizer, member.config)


@patch(
    OWNER,
    "_set_main_param_and_optimizer_states",
    "model_param_group_index_map",
    "optimizer.state",
    "optimizer.param_groups",
    drop_test="test_upstream_cannot_load_the_state_of_a_parameter",
)
def load_state_without_step(member: DistributedOptimizer) -> None:
    """A parameter's state is loaded without its `step`, which comes with the group.

    Upstream copies every key from the checkpoint, which has no `step`: KeyError. It also copies in place into leaves
    that require grad, outside no_grad: RuntimeError.
    """

    @torch.no_grad()
    def set_state(model_param: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
        group_index, group_order = member.model_param_group_index_map[model_param]
        main_param = member.optimizer.param_groups[group_index]["params"][group_order]
        for name, target in {"param": main_param, **member.optimizer.state[main_param]}.items():
            if name != "step":
                target.copy_(tensors[name])

    member._set_main_param_and_optimizer_states = set_state  # type: ignore[method-assign]


@patch(OWNER, "load_state_dict", "optimizer.state", drop_test="test_upstream_counts_steps_in_one_tensor_after_loading")
def separate_step_counts(member: DistributedOptimizer) -> None:
    """After loading each parameter has a `step` of its own.

    Upstream gives all of them one tensor. Each step then counts it up once per parameter, and the bias correction is
    silently wrong.
    """
    load = member.load_state_dict

    def load_state_dict(state_dict: dict[str, Any]) -> None:
        load(state_dict)
        for state in member.optimizer.state.values():
            state["step"] = state["step"].clone()

    member.load_state_dict = load_state_dict  # type: ignore[method-assign]


@patch(
    OWNER, "get_parameter_state_dp_zero", "buffers", drop_test="test_upstream_shifts_what_stands_behind_a_padded_bucket"
)
def keep_bucket_padding(member: DistributedOptimizer) -> None:
    """The gathered state of a buffer has the padding between its buckets.

    Upstream leaves it out, but then cuts parameters out at positions that count it ("fully reshardable" state). So
    behind a bucket that needed padding weights are restored from their neighbours. A stage that shares the embedding
    has such a bucket whenever the embedding is no multiple of lcm(dp, 128) elements.
    """
    gather = member.get_parameter_state_dp_zero

    def gather_padded(*args: Any, **kwargs: Any) -> dict[Any, Any] | None:
        state = gather(*args, **kwargs)
        if state is None:  # only rank 0 was asked to hold it
            return None
        for index, buffer in enumerate(member.buffers):
            for tensors in state[index].values():
                for key, value in tensors.items():
                    if torch.is_tensor(value):
                        tensors[key] = _with_bucket_padding(value, buffer)
        return state

    member.get_parameter_state_dp_zero = gather_padded  # type: ignore[method-assign]


def _with_bucket_padding(packed: torch.Tensor, buffer: Any) -> torch.Tensor:
    """Each bucket's elements at the bucket's place in the buffer."""
    if len(buffer.buckets) == 1:
        return packed
    padded = packed.new_zeros(buffer.numel)
    for bucket, values in zip(
        buffer.buckets, packed.split([bucket.numel_unpadded for bucket in buffer.buckets]), strict=True
    ):
        padded[bucket.offset : bucket.offset + values.numel()] = values
    return padded


REPAIRS: tuple[Patch, ...] = (keep_bucket_padding,)
REPAIRS_WITH_TORCH_ADAMW: tuple[Patch, ...] = (fill_initial_state, load_state_without_step, separate_step_counts)
