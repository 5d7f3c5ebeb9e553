"""`[algorithm]`: filters, advantages and the objective."""

from __future__ import annotations

from pydantic import Field, model_validator

from hybridflow.config.regularisation_sections import AEPOSection, KLSection
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
    kl: KLSection = KLSection()
    aepo: AEPOSection = AEPOSection()

    @model_validator(mode="after")
    def _check_aepo(self) -> AlgorithmSection:
        if "aepo" in self.model_fields_set and not self.aepo.model_fields_set:
            raise ValueError(
                "algorithm.aepo is there without algorithm.aepo.high and algorithm.aepo.low: AEPO needs two thresholds "
                "of entropy, and none is published. Remedy: set both, or remove the section"
            )
        return self
