"""Layouts, how a model is spread over processes, and the checks that need no process group.

No Megatron here, so that a driver or a planner can use it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_ext.hf.config import HFConfig

ContextExchange = Literal["all_gather", "all_to_all"]
Recompute = Literal["none", "full", "selective"]


class LayoutError(ValueError):
    """A model does not fit a layout. The message gives the key, its value, the rule and a remedy."""


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions. Ranks are ordered tp fastest, then cp, then dp, then pp (Megatron's order)."""

    tp: int = 1
    """Tensor parallel: ranks that share every matrix."""
    pp: int = 1
    """Pipeline parallel: ranks that share the layers."""
    dp: int = 1
    """Data parallel: replicas that share the rows and the optimizer state."""
    sequence_parallel: bool = False
    """Cuts the activations between tensor parallel regions along the tokens."""
    cp: int = 1
    """Context parallel: ranks that share the tokens of every row, each two chunks of it (zig-zag)."""
    cp_comm: ContextExchange = "all_gather"
    """Exchange of context parallel ranks in attention: all keys and values, or tokens against heads (Ulysses)."""
    vpp: int = 1
    """Virtual pipeline: groups of layers that each pipeline stage holds; more of them means smaller bubbles."""
    recompute: Recompute = "none"
    """Part that backward computes again, not kept: nothing, whole layers, or the feed-forward of each layer."""
    overlap: bool = False
    """Reduces gradients while backward runs, and gathers updated weights while the next forward runs."""
    bucket_elements: int = 40_000_000
    """Parameters that are reduced together under `overlap`."""

    ep: int = 1
    """Expert parallel: ranks that share the experts of a mixture-of-experts layer; taken out of cp x dp (and tp)."""
    etp: int = 1
    """Expert tensor parallel: ranks that share every matrix of an expert."""
    grouped_experts: bool = False
    """Multiplies with all experts of a rank in one call. Needs CUDA and Transformer Engine; not run on a GPU yet."""

    @property
    def world_size(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def pad_to_multiple(self) -> int:
        """A rank's part of a packed micro-batch has a multiple of this many tokens."""
        return self.tp if self.sequence_parallel else 1


def check_layout(layout: Layout, hf_config: HFConfig) -> None:
    """Raises LayoutError unless every tensor of the model can be cut as `layout` asks."""
    check_values(layout)
    cut_by_tp = {
        "attention heads": hf_config.num_heads,
        "key-value heads": hf_config.num_kv_heads,
        "feed-forward width": hf_config.ffn_hidden_size,
    }
    for what, count in cut_by_tp.items():
        _check_divides("tp", layout.tp, what, count, all_counts=cut_by_tp.values())
    _check_divides("pp", layout.pp, "layers", hf_config.num_layers)
    _check_divides("vpp", layout.vpp, "layers of a pipeline stage", hf_config.num_layers // layout.pp)
    if layout.cp_comm == "all_to_all":
        remedy = 'or cp_comm = "all_gather", which needs no heads'
        cut_by_cp = {
            "attention heads of a rank": hf_config.num_heads // layout.tp,
            "key-value heads of a rank": hf_config.num_kv_heads // layout.tp,
        }
        for what, count in cut_by_cp.items():
            _check_divides("cp", layout.cp, what, count, remedy, all_counts=cut_by_cp.values())
    if hf_config.moe is not None:
        _check_experts(layout)
        _check_divides("ep", layout.ep, "experts", hf_config.moe.num_experts)
        _check_divides("etp", layout.etp, "rows of an expert's feed-forward width", hf_config.moe.ffn_hidden_size)
    elif layout.grouped_experts:
        raise LayoutError(
            f"grouped_experts = true: model_type = {hf_config.model_type!r} has no experts; set grouped_experts = false"
        )
    elif layout.ep > 1 or layout.etp > 1:
        key, size = ("ep", layout.ep) if layout.ep > 1 else ("etp", layout.etp)
        raise LayoutError(f"{key} = {size}: model_type = {hf_config.model_type!r} has no experts; set {key} = 1")


def check_values(layout: Layout) -> None:
    """Raises LayoutError for what is wrong whatever the model."""
    for key in ("tp", "pp", "dp", "cp", "vpp", "ep", "etp", "bucket_elements"):
        size = getattr(layout, key)
        if size < 1:
            raise LayoutError(f"{key} = {size}: a parallel size must be at least 1; use 1 for none")
    for key, choices in (("cp_comm", get_args(ContextExchange)), ("recompute", get_args(Recompute))):
        if getattr(layout, key) not in choices:
            raise LayoutError(f"{key} = {getattr(layout, key)!r}: it must be one of {', '.join(choices)}")
    if layout.sequence_parallel and layout.tp == 1:
        raise LayoutError("sequence_parallel = true: it needs tp > 1; set sequence_parallel = false or raise tp")
    if layout.vpp > 1 and layout.pp == 1:
        raise LayoutError(f"vpp = {layout.vpp}: it splits pipeline stages, so it needs pp > 1; set vpp = 1 or raise pp")
    ranks_of_stage = layout.world_size // layout.pp
    if ranks_of_stage % (layout.ep * layout.etp):
        raise LayoutError(
            f"ep x etp = {layout.ep} x {layout.etp} = {layout.ep * layout.etp}: it must divide the {ranks_of_stage} "
            "ranks of a pipeline stage (tp x cp x dp); change ep, etp or dp"
        )


def _check_experts(layout: Layout) -> None:
    if layout.tp > 1 and not layout.sequence_parallel:
        raise LayoutError(
            f"sequence_parallel = false: a mixture of experts with tp = {layout.tp} needs it, or every rank would send "
            "the same tokens to the experts; set sequence_parallel = true"
        )


def _check_divides(
    key: str, size: int, what: str, count: int, remedy: str = "", all_counts: Iterable[int] = ()
) -> None:
    """The sizes that are offered instead divide `all_counts` too: all that is cut over the same ranks."""
    if count % size:
        common = math.gcd(count, *all_counts)
        choices = ", ".join(str(n) for n in range(1, min(common, 64) + 1) if common % n == 0)
        alternative = f" {remedy}" if remedy else ""
        raise LayoutError(
            f"{key} = {size}: it must divide the model's {count} {what}; choose one of {choices}{alternative}"
        )
