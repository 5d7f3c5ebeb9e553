"""How a model is spread over processes, and the checks that need no process group.

No Megatron here, so that a driver or a planner can use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_ext.hf.config import HFConfig


class LayoutError(ValueError):
    """A model does not fit a layout. The message gives the key, its value, the rule and a remedy."""


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel dimensions. Ranks are ordered tp fastest, then dp, then pp (Megatron's order)."""

    tp: int = 1
    """Tensor parallel: ranks that share every matrix."""
    pp: int = 1
    """Pipeline parallel: ranks that share the layers."""
    dp: int = 1
    """Data parallel: replicas that share the rows and the optimizer state."""
    sequence_parallel: bool = False
    """Cuts the activations between tensor parallel regions along the tokens."""

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def pad_to_multiple(self) -> int:
        """Packed micro-batches must have a multiple of this many tokens."""
        return self.tp if self.sequence_parallel else 1


def check_layout(layout: Layout, hf_config: HFConfig) -> None:
    """Raises LayoutError unless every tensor of the model can be cut as `layout` asks."""
    for key, size in (("tp", layout.tp), ("pp", layout.pp), ("dp", layout.dp)):
        if size < 1:
            raise LayoutError(f"{key} = {size}: a parallel size must be at least 1; use 1 for none")
    if layout.sequence_parallel and layout.tp == 1:
        raise LayoutError("sequence_parallel = true: it needs tp > 1; set sequence_parallel = false or raise tp")
    divisible = (
        ("tp", layout.tp, "attention heads", hf_config.num_heads),
        ("tp", layout.tp, "key-value heads", hf_config.num_kv_heads),
        ("tp", layout.tp, "feed-forward width", hf_config.ffn_hidden_size),
        ("pp", layout.pp, "layers", hf_config.num_layers),
    )
    for key, size, what, count in divisible:
        if count % size:
            choices = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0 and n <= 64)
            raise LayoutError(f"{key} = {size}: it must divide the model's {count} {what}; choose one of {choices}")
