"""`[algorithm]`: filters, advantages and the objective."""

from __future__ import annotations

from pydantic import Field

from hybridflow.config.presets import Name
from hybridflow.config.section import Section


class AlgorithmSection(Section):
    """GRPO with the DAPO changes (arXiv 2402.03300, 2503.14476)."""

    preset: Name | None = None
    """Values of a published recipe, over several sections, beneath what files and `--set` say. All of them, each with
    its source: hybridflow config --preset NAME. Empty: none."""
    num_completions: int = Field(default=8, ge=2)
    """Completions per prompt: the size of a group."""
    clip_low: float = Field(default=0.2, gt=0, le=1)
    """A token's ratio below 1 - clip_low gives no gradient where its advantage is negative."""
    clip_high: float = Field(default=0.28, gt=0)
    """A token's ratio above 1 + clip_high gives no gradient where its advantage is positive."""
    normalise_std: bool = True
    """Divide advantages by the standard deviation of the group."""
    mask_stale_tokens: bool = False
    """Tokens that an older policy decoded (rollout.over_sampling above 1) are read and not learnt from."""
