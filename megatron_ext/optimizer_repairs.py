"""Mends Megatron-Core 0.16.1's distributed optimizer where saving and loading lose or corrupt state.

The repairs are made on the object; upstream's classes stay as they are.

With torch.optim.AdamW, which it falls back to without Apex or Transformer Engine (always so on a CPU):

1. AdamW makes its state at the first step, but `state_dict()` wants one `step` common to all parameters before.
2. Loading copies every key of a parameter's state from the checkpoint, which has no `step`: KeyError 'step'.
3. The copy writes in place into leaves that require grad, outside no_grad.
4. Loading gives all parameters one shared `step` tensor; each step then counts it up once per parameter and the bias
   correction is silently wrong.

With any AdamW:

5. The "fully reshardable" state is cut out of a flat tensor without the padding between buckets, at positions that
   count it. So behind a bucket that needed padding everything shifts, and weights are restored from their neighbours.
   A stage that shares the embedding has such a bucket whenever the embedding is no multiple of lcm(dp, 128) elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_ext import platform

platform.install()

from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer  # noqa: E402
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer  # noqa: E402


def distributed_optimizers(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """The optimizers that hold parameters, out of a chain or alone."""
    chain = optimizer.chained_optimizers if isinstance(optimizer, ChainedOptimizer) else [optimizer]
    return [member for member in chain if isinstance(member, DistributedOptimizer) and not member.is_stub_optimizer]


def mend_optimizer(optimizer: MegatronOptimizer) -> None:
    """Applies the repairs to a new optimizer; 1 to 4 only to parts that use torch's AdamW."""
    for member in distributed_optimizers(optimizer):
        member.get_parameter_state_dp_zero = _padded_state(member)  # type: ignore[method-assign]
        if isinstance(member.optimizer, torch.optim.AdamW):
            _fill_initial_state(member.optimizer)
            member._set_main_param_and_optimizer_states = _state_setter(member)  # type: ignore[method-assign]
            member.load_state_dict = _loader(member, member.load_state_dict)  # type: ignore[method-assign]


def _fill_initial_state(adamw: torch.optim.AdamW) -> None:
    """The state AdamW would make at its first step: zeros."""
    for group in adamw.param_groups:
        for parameter in group["params"]:
            if not adamw.state[parameter]:
                adamw.state[parameter].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
                )


def _state_setter(member: DistributedOptimizer) -> Callable[[torch.nn.Parameter, dict[str, Any]], None]:
    @torch.no_grad()
    def set_state(model_param: torch.nn.Parameter, tensors: dict[str, Any]) -> None:
        group_index, group_order = member.model_param_group_index_map[model_param]
        main_param = member.optimizer.param_groups[group_index]["params"][group_order]
        for name, target in {"param": main_param, **member.optimizer.state[main_param]}.items():
            if name != "step":
                target.copy_(tensors[name])

    return set_state


def _loader(member: DistributedOptimizer, load: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def load_state_dict(state_dict: dict[str, Any]) -> None:
        load(state_dict)
        for state in member.optimizer.state.values():
            state["step"] = state["step"].clone()

    return load_state_dict


def _padded_state(member: DistributedOptimizer) -> Callable[..., dict[Any, Any] | None]:
    """`get_parameter_state_dp_zero` with the padding between buckets put back (repair 5)."""
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

    return gather_padded


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
