"""Routing replay: routers that take the experts which came with the tokens, and weigh them by their own logits.

Only the choice is replayed. Gate weights are the softmax of this router's logits at the replayed experts, so gradients
flow to the router as ever. Tokens of which nothing is known, such as padding and the last token of a completion, which
no engine has computed, go where the router wants.

A layer that backward computes again must meet the experts of its own micro-batch, while later ones have gone through
since. So nothing is queued: each call of a layer gets the routing of its micro-batch with the segments, and holds on to
it where it is computed again (Megatron's own `RouterReplay` has lists whose order must match the schedule's).

Shape legend: T tokens of this rank's routers (a slice under sequence parallel), K experts of a token, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext import platform
from megatron_ext.packing.routed_experts import Disagreement, RoutedExperts
from megatron_ext.parallel.topology import Topology

platform.install()

from megatron.core import tensor_parallel  # noqa: E402
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec  # noqa: E402
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear  # noqa: E402
from megatron.core.transformer.mlp import MLPSubmodules  # noqa: E402
from megatron.core.transformer.moe.experts import SequentialMLP  # noqa: E402
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules  # noqa: E402
from megatron.core.transformer.spec_utils import ModuleSpec  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

ComputeTopk = Callable[..., tuple[Tensor, Tensor]]


class Routing:
    """The routed experts of one micro-batch on one rank, and what its routers would have chosen themselves.

    Args:
        routed: Of this rank's tokens; None: nothing is known.
        config: Of the model.
        num_tokens: Tokens of this rank, all tensor parallel ranks together.
        topology: Which of them are this rank's, and where they are computed.

    Raises:
        ValueError: the experts are of another number of layers or per token than the model's, or no experts of it.
    """

    def __init__(
        self, routed: RoutedExperts | None, config: TransformerConfig, num_tokens: int, topology: Topology
    ) -> None:
        shape = (len(expert_layers(config)), config.moe_router_topk)
        if routed is None:
            routed = RoutedExperts.of_bytes(b"", shape, 1, num_tokens)
        found = tuple(routed.experts_TLK.shape[1:])
        if found != shape:
            raise ValueError(f"routed experts of {found} (layers, experts of a token), the model has {shape}")
        numbers = routed.experts_TLK
        if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < config.num_moe_experts:
            raise ValueError(
                f"routed experts are numbered {int(numbers.min())} to {int(numbers.max())}, the model has "
                f"{config.num_moe_experts} experts, from 0"
            )
        mine = slice(None)
        if config.sequence_parallel:
            num_mine = num_tokens // topology.tp_size
            mine = slice(topology.tp_rank * num_mine, (topology.tp_rank + 1) * num_mine)
        self._device = topology.device
        self._experts_LTK = routed.experts_TLK[mine].transpose(0, 1).contiguous()
        self._order = {layer: place for place, layer in enumerate(expert_layers(config))}
        self.known_T = routed.known_T[mine].to(topology.device)
        self.num_differing: dict[int, Tensor] = {}
        """By layer that was computed here: known tokens for which the router would have chosen another set."""
        self.differs_T = torch.zeros_like(self.known_T)
        """Whether it would have at any of them."""

    def at(self, layer: int) -> RoutedLayer:
        """The choice at a layer, by its number in the whole model from 0."""
        return RoutedLayer(self, layer, self._experts_LTK[self._order[layer]])

    def note(self, layer: int, differs_T: Tensor) -> None:
        """May be told twice, by a layer that is computed again."""
        self.num_differing[layer] = differs_T.sum()
        self.differs_T |= differs_T


class RoutedLayer:
    """Stands in for `RouterReplay` in Megatron's router, for one layer and micro-batch."""

    def __init__(self, routing: Routing, layer: int, experts_TK: Tensor) -> None:
        self._routing = routing
        self._layer = layer
        self._experts_TK = experts_TK

    def get_replay_topk(
        self,
        scores_TE: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: ComputeTopk | None = None,
    ) -> tuple[Tensor, Tensor]:
        """([T, K] scores with a graph, int64 [T, K] experts), as the router's own choice gives them."""
        assert default_compute_topk is not None
        with torch.no_grad():
            _, own_TK = default_compute_topk(scores_TE, topk, num_groups=num_groups, group_topk=group_topk)
            known_T = self._routing.known_T
            if own_TK.shape != self._experts_TK.shape:
                raise ValueError(
                    f"layer {self._layer} routes {tuple(own_TK.shape)} (tokens, experts of each), and routed experts "
                    f"came for {tuple(self._experts_TK.shape)}"
                )
            given_TK = self._experts_TK.to(scores_TE.device, non_blocking=True).long()
            experts_TK = torch.where(known_T[:, None], given_TK, own_TK)
            is_own_TE = torch.zeros_like(scores_TE, dtype=torch.bool).scatter_(1, own_TK, True)
            self._routing.note(self._layer, ~is_own_TE.gather(1, experts_TK).all(dim=1))
        return scores_TE.gather(1, experts_TK), experts_TK


class ExpertLayer(MoELayer):
    """Router, dispatch and experts. Each expert is a module of its own, unless the config asks for grouped products,
    which need Transformer Engine."""

    routing: Routing | None = None
    """Choice of the micro-batch that is computed next; None: the router decides."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config, _submodules(config))
        self._recomputes, self.moe_layer_recompute = self.moe_layer_recompute, False

    def forward(self, hidden_states: Tensor, intermediate_tensors: None = None, padding_mask: None = None) -> Any:
        """[T, 1, H] -> [T, 1, H] and no bias."""
        routing = self.routing

        def compute(hidden: Tensor) -> Any:  # also in backward, when `self.routing` is another micro-batch's
            self.router.router_replay = None if routing is None else routing.at(self.layer_number - 1)
            return super(ExpertLayer, self).forward(hidden)

        if self._recomputes:
            return tensor_parallel.checkpoint(compute, False, hidden_states)
        return compute(hidden_states)


def _submodules(config: TransformerConfig) -> MoESubmodules:
    if config.moe_grouped_gemm:
        spec = get_moe_module_spec(use_te=True, num_experts=config.num_moe_experts, moe_grouped_gemm=True)
        return spec.submodules
    expert = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    return MoESubmodules(experts=ModuleSpec(module=SequentialMLP, submodules=expert))


def expert_layers(config: TransformerConfig) -> list[int]:
    """Numbers of the layers with experts in the whole model, from 0."""
    if config.num_moe_experts is None:
        return []
    frequency = config.moe_layer_freq
    return [layer for layer in range(config.num_layers) if not isinstance(frequency, list) or frequency[layer]]


def follow_segments(chunks: Sequence[Any]) -> None:
    """Hands each layer with experts the routing that comes with the segments of its micro-batch, at every call."""

    def hand_over(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer.mlp.routing = kwargs["packed_seq_params"].routing

    for chunk in chunks:
        for layer in chunk.decoder.layers:
            if isinstance(layer.mlp, ExpertLayer):
                layer.register_forward_pre_hook(hand_over, with_kwargs=True)


def sum_disagreement(routings: Sequence[Routing], config: TransformerConfig, topology: Topology) -> Disagreement:
    """Over all micro-batches of a step and all ranks, which get the same. Collective."""
    differs_M = torch.cat([routing.differs_T & routing.known_T for routing in routings]).int()
    choices = torch.zeros(2, dtype=torch.int64, device=topology.device)
    for routing in routings:
        num_known = routing.known_T.sum()
        for num_differing in routing.num_differing.values():
            choices += torch.stack([num_known, num_differing])
    if topology.pp_size > 1:  # stages have other layers of the same tokens
        dist.all_reduce(differs_M, dist.ReduceOp.MAX, group=topology.pp_group)
        dist.all_reduce(choices, group=topology.pp_group)
    num_known = torch.stack([routing.known_T.sum() for routing in routings]).sum()
    counts = torch.cat([choices, torch.stack([num_known, differs_M.sum()])])
    if config.sequence_parallel:
        dist.all_reduce(counts, group=topology.tp_group)
    if topology.num_replicas > 1:
        dist.all_reduce(counts, group=topology.dp_group)
    return Disagreement(*counts.tolist())
