"""`[algorithm]`: filters, advantages and the objective."""

from __future__ import annotations

from pydantic import Field

from hybridflow.config.function_names import Functions, GroupFilters
from hybridflow.config.section import Section


class AlgorithmSection(Section):
    """GRPO with the DAPO changes (arXiv 2402.03300, 2503.14476)."""

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
    filter: GroupFilters = ["same_reward"]
    """What leaves a group out of training; the first that gives a reason counts. "same_reward", whose groups have no
    advantages, and functions "module:function". Groups with too few known rewards are left out anyway."""
    metrics: Functions = []
    """Functions "module:function" that give a value per token, whose mean is logged as own/<function>."""
    parameters: dict[str, bool | int | float | str] = Field(default_factory=dict)
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
        named = {"loss": [], "advantage": [], "filter": self.filter, "metrics": self.metrics}
        return {key: found for key, names in named.items() if (found := [name for name in names if ":" in name])}
