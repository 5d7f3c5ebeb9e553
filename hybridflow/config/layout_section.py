"""`layout`: how the model is cut over train workers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hybridflow.config.section import Section


class LayoutSection(Section):
    """Megatron parallel layout; the number of train workers is tp x cp x dp x pp.

    Meanings: megatron_ext/parallel/layout.py.
    """

    tp: int = Field(default=1, ge=1)
    """Tensor parallel: ranks that share every matrix."""
    pp: int = Field(default=1, ge=1)
    """Pipeline parallel: ranks that share the layers."""
    dp: int = Field(default=1, ge=1)
    """Data parallel: replicas that share the rows and the optimizer state."""
    sequence_parallel: bool = False
    """Cut activations along the tokens between tensor parallel regions."""
    cp: int = Field(default=1, ge=1)
    """Context parallel: ranks that share the tokens of every row."""
    cp_comm: Literal["all_gather", "all_to_all"] = "all_gather"
    """Exchange of context parallel ranks in attention: keys and values, or tokens against heads."""
    vpp: int = Field(default=1, ge=1)
    """Virtual pipeline: groups of layers that each pipeline stage holds."""
    recompute: Literal["none", "full", "selective"] = "none"
    """Part that backward computes again: nothing, whole layers, or the feed-forward of each layer."""
    overlap: bool = False
    """Reduce gradients while backward runs, gather weights while forward runs."""
    ep: int = Field(default=1, ge=1)
    """Expert parallel: ranks that share the experts of a layer; taken out of cp x dp (and tp)."""
    etp: int = Field(default=1, ge=1)
    """Expert tensor parallel: ranks that share every matrix of an expert."""
    grouped_experts: bool = False
    """Multiply with all experts of a rank in one call; needs GPUs with Transformer Engine."""

    @property
    def world_size(self) -> int:
        return self.tp * self.cp * self.dp * self.pp
