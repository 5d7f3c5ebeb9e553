"""`[algorithm]`: filters, advantages and the objective."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from hybridflow.config.algorithm_parts import PARAMETERS, find_part_conflicts, with_own_defaults
from hybridflow.config.conflicts import CONFLICT_BREAK
from hybridflow.config.function_names import Functions, FunctionValue, GroupFilters, one_of
from hybridflow.config.presets import Name
from hybridflow.config.regularisation_sections import AEPOSection, KLSection
from hybridflow.config.rollout_correction_section import RolloutCorrectionSection
from hybridflow.config.section import Section

Loss = Annotated[
    Literal["clip", "dual_clip", "gspo", "cispo", "sapo"] | str, AfterValidator(one_of(*PARAMETERS["loss"]))
]
Advantage = Annotated[
    Literal["group_relative", "dr_grpo", "rloo", "reinforce_pp", "task_std"] | str,
    AfterValidator(one_of(*PARAMETERS["advantage"])),
]


class AlgorithmSection(Section):
    """GRPO with the DAPO changes (arXiv 2402.03300, 2503.14476), where nothing else is chosen."""

    preset: Name | None = None
    """Values of a published recipe, over several sections, beneath what files and `--set` say. All of them, each with
    its source: hybridflow config --preset NAME. Empty: none."""
    num_completions: int = Field(default=8, ge=2)
    """Completions per prompt: the size of a group."""
    loss: Loss = "clip"
    """Loss of a token: clipped surrogate; with a dual clip; of whole sequences; clipped weights; soft gate; or a
    function of one's own, "module:function"."""
    advantage: Advantage = "group_relative"
    """Reward against: mean and deviation of its group (GRPO); the mean; the others of its group; the group's mean with
    the deviation over the step, or over its task in the step (QwenLong-L1.5); or a function, "module:function"."""
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
    """Routers of a mixture of experts in the trainer's passes: they choose, or take the experts that the engine
    chose, and weigh them themselves."""
    rollout_correction: RolloutCorrectionSection = RolloutCorrectionSection()
    """Weights for tokens that engine and trainer do not hold for equally probable."""
    mask_stale_tokens: bool = False
    """Tokens that an older policy decoded (rollout.over_sampling above 1) are read and not learnt from."""
    kl: KLSection = KLSection()
    aepo: AEPOSection = AEPOSection()
    filter: GroupFilters = Field(default_factory=lambda: ["same_reward"])
    """Filters of groups, of which the first that gives a reason counts: "same_reward", whose groups have no advantages,
    and functions of one's own, "module:function". Groups with too few known rewards are left out in any case."""
    metrics: Functions = Field(default_factory=list)
    """Functions of one's own, "module:function", that give a value per token; the mean is logged as own/<function>."""
    parameters: dict[str, FunctionValue] = Field(default_factory=dict)
    """Values of parameters of one's own functions, by name."""
    module_folders: list[str] = Field(default_factory=list)
    """Where "module:function" is looked for before the installed packages; those of the configuration files and the
    working folder are added where a function is named."""

    @property
    def names_module(self) -> bool:
        """Whether a part is named as "module:function"."""
        return bool(self.functions)

    @property
    def functions(self) -> dict[str, list[str]]:
        """Functions of the user's own, by key."""
        named = {"loss": [self.loss], "advantage": [self.advantage], "filter": self.filter, "metrics": self.metrics}
        return {key: found for key, names in named.items() if (found := [name for name in names if ":" in name])}

    @model_validator(mode="before")
    @classmethod
    def _take_defaults_of_the_loss(cls, values: Any) -> Any:
        return with_own_defaults(values) if isinstance(values, dict) else values

    @field_validator("aepo", mode="before")
    @classmethod
    def _refuse_no_thresholds(cls, given: Any) -> Any:
        if given == {}:
            raise ValueError(
                "algorithm.aepo is there without algorithm.aepo.high and algorithm.aepo.low: AEPO needs two thresholds "
                "of entropy, and none is published. Remedy: set both, or remove the section"
            )
        return given

    @model_validator(mode="after")
    def _check_parts(self) -> AlgorithmSection:
        conflicts = list(find_part_conflicts(self))
        if conflicts:
            raise ValueError(CONFLICT_BREAK.join(conflicts))
        return self
