"""`[algorithm]`: filters, advantages and the objective."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from hybridflow.config.algorithm_parts import find_part_conflicts, with_own_defaults
from hybridflow.config.conflicts import CONFLICT_BREAK
from hybridflow.config.presets import Name
from hybridflow.config.section import Section


class AlgorithmSection(Section):
    """GRPO with the DAPO changes (arXiv 2402.03300, 2503.14476), where nothing else is chosen."""

    preset: Name | None = None
    """Values of a published recipe, over several sections, beneath what files and `--set` say. All of them, each with
    its source: hybridflow config --preset NAME. Empty: none."""
    num_completions: int = Field(default=8, ge=2)
    """Completions per prompt: the size of a group."""
    loss: Literal["clip", "dual_clip", "gspo", "cispo", "sapo"] = "clip"
    """Loss of a token: clipped surrogate; with a dual clip; of whole sequences; clipped weights; soft gate."""
    advantage: Literal["group_relative", "dr_grpo", "rloo", "reinforce_pp", "task_std"] = "group_relative"
    """Reward against: mean and deviation of its group (GRPO); the mean; the others of its group; the group's mean with
    the deviation over the step, or over its task in the step (QwenLong-L1.5)."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """Mean over the step's tokens; over sequences of their means; over sequences of their sums over a constant."""
    clip_low: float = Field(default=0.2, gt=0, le=1)
    """A token's ratio below 1 - clip_low gives no gradient where its advantage is negative. Unset, gspo has 3e-4, for
    ratios of sequences, and cispo, which clips weights, 1."""
    clip_high: float = Field(default=0.28, gt=0)
    """A token's ratio above 1 + clip_high gives no gradient where its advantage is positive. Unset, gspo has 4e-4,
    cispo 4."""
    clip_dual: float = Field(default=3.0, gt=1)
    """With dual_clip a token's ratio above it gives no gradient where its advantage is negative."""
    tau_pos: float = Field(default=1.0, gt=0)
    """Steepness of the gate of sapo where the advantage is positive."""
    tau_neg: float = Field(default=1.05, gt=0)
    """Steepness of the gate of sapo where it is not."""
    normalise_std: bool = True
    """Divide advantages by the standard deviation of the group, with group_relative."""
    normaliser_tokens: int | None = Field(default=None, ge=1)
    """Constant that divides each sequence's sum; empty: rollout.max_new_tokens."""
    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Reward per token for one nat of entropy of the distribution that it was drawn from; 0 leaves the term out. The
    released QwenLong-L1 code has 0.001."""
    routing_replay: Literal["off", "engine"] = "off"
    """Routers of a mixture of experts in the trainer's passes: they choose anew, or take the experts that the engine
    chose, and weigh them themselves."""
    mask_stale_tokens: bool = False
    """Tokens that an older policy decoded (rollout.over_sampling above 1) are read and not learnt from."""

    @model_validator(mode="before")
    @classmethod
    def _take_defaults_of_the_loss(cls, values: Any) -> Any:
        return with_own_defaults(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_parts(self) -> AlgorithmSection:
        conflicts = list(find_part_conflicts(self))
        if conflicts:
            raise ValueError(CONFLICT_BREAK.join(conflicts))
        return self
