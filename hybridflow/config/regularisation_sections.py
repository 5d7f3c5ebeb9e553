"""`[algorithm.kl]` and `[algorithm.aepo]`: what keeps the policy near a reference, and its entropy in bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hybridflow.config.paths import StartOrInputPath
from hybridflow.config.section import Section

START = "start"
"""The reference that is the policy itself, at the start of RL."""


class KLSection(Section):
    """A price for each step that the policy goes away from a reference policy."""

    place: Literal["off", "loss", "reward"] = "off"
    """Where it is paid: a term of the loss per token, or once per completion, subtracted from its reward before
    advantages are computed. "off": there is no reference, and nothing is computed for one."""
    coefficient: float = Field(default=0.0, ge=0)
    """Price of one nat; GRPO's paper has 0.04 (in the loss, with "k3")."""
    estimator: Literal["k1", "k2", "k3", "unbiased"] = "k3"
    """Estimate of KL(policy || reference) from the tokens drawn. In the loss "unbiased" has the gradient of the KL,
    "k2" has it while the policy is the one that decoded, "k3" has that of KL(reference || policy) then, and "k1" has
    none in the mean; in the reward "k1" is unbiased in value and gradient."""
    reference: StartOrInputPath | None = None
    """"start": the policy as RL begins, after the warm-up; or an HF directory of the same architecture and tokenizer.
    Needed where `place` is not "off"."""

    @property
    def is_on(self) -> bool:
        return self.place != "off"

    @property
    def reference_folder(self) -> str | None:
        """The HF directory of the reference; None where it is the policy's own start."""
        return None if self.reference == START else self.reference

    @model_validator(mode="after")
    def _check(self) -> KLSection:
        told = f'algorithm.kl.place = "{self.place}" with algorithm.kl.coefficient = {self.coefficient:g}'
        if not self.is_on and self.coefficient:
            raise ValueError(
                f"{told}: there would be no KL term. Remedy: set algorithm.kl.place to "
                '"loss" or "reward", or algorithm.kl.coefficient = 0'
            )
        if self.is_on and not self.coefficient:
            raise ValueError(
                f"{told}: the term would cost a forward pass and change nothing. Remedy: set algorithm.kl.coefficient "
                'above 0, or algorithm.kl.place = "off"'
            )
        if self.is_on and self.reference is None:
            raise ValueError(
                f"{told} has no reference: algorithm.kl.reference is not set. Remedy: set it to "
                '"start", the policy as RL begins, or to an HF directory of the same architecture'
            )
        if self.place == "reward" and self.estimator == "unbiased":
            raise ValueError(
                'algorithm.kl.estimator = "unbiased" with algorithm.kl.place = "reward": its weight, the ratio of the '
                "policy in update to the one that decoded, is 1 where rewards are made. Remedy: set "
                'algorithm.kl.estimator = "k1" or "k3" (the same value), or algorithm.kl.place = "loss"'
            )
        return self


class AEPOSection(Section):
    """Negative samples are left out while the policy is too random: QwenLong-L1.5's AEPO. Off without thresholds, which
    its paper does not publish."""

    high: float | None = Field(default=None, gt=0)
    """Mean entropy of a step's tokens, in nats, above which completions of negative advantage are left out."""
    low: float | None = Field(default=None, gt=0)
    """Mean entropy below which they are learnt from again."""

    @property
    def is_on(self) -> bool:
        return self.high is not None

    @model_validator(mode="after")
    def _check(self) -> AEPOSection:
        if (self.high is None) != (self.low is None):
            there, missing = ("low", "high") if self.high is None else ("high", "low")
            raise ValueError(
                f"algorithm.aepo.{there} = {getattr(self, there):g} is set and algorithm.aepo.{missing} is not: AEPO "
                "needs two thresholds of entropy, and none is published. Remedy: set both, or neither"
            )
        if self.high is not None and self.low is not None and self.low >= self.high:
            raise ValueError(
                f"algorithm.aepo.low = {self.low:g} is not below algorithm.aepo.high = {self.high:g}: masking begins "
                "above the second and ends below the first. Remedy: lower the first, or raise the second"
            )
        return self
