"""`[algorithm.rollout_correction]`: weights for tokens that engine and trainer hold for differently probable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from hybridflow.config.conflicts import CONFLICT_BREAK
from hybridflow.config.section import Section

WEIGHTS = {"tis": ("tis_cap",), "icepop": ("icepop_low", "icepop_high")}
"""By weight of tokens, the keys that it takes."""
_HERE = "algorithm.rollout_correction"


class RolloutCorrectionSection(Section):
    """Weights of the policy's loss by the ratio of a token's probability in the trainer, before the update, to that in
    the engine. They multiply. Off: nothing is computed."""

    token_weight: Literal["off", "tis", "icepop"] = "off"
    """Each token by its ratio: "tis" (truncated importance sampling) takes it up to tis_cap, "icepop" takes it within
    its bounds and 0 outside."""
    tis_cap: float = Field(default=2.0, ge=1)
    """Largest weight of a token, with "tis"."""
    icepop_low: float = Field(default=0.5, gt=0)
    """Ratio below which a token is masked, with "icepop"."""
    icepop_high: float = Field(default=5.0, gt=0)
    """Ratio above which a token is masked, with "icepop"."""
    geometric_low: float | None = Field(default=None, gt=0)
    """A sequence is masked whose geometric mean ratio is below it. Published bounds are as far apart as 0.999 (verl)
    and 0.1 (prime-rl). Empty: no bound."""
    geometric_high: float | None = Field(default=None, gt=0)
    """A sequence is masked whose geometric mean ratio is above it. Empty: no bound."""
    outlier_low: float | None = Field(default=None, gt=0)
    """A sequence is masked with any token of a ratio below it; verl has 1e-4 to 1e-6. Empty: no bound."""
    outlier_high: float | None = Field(default=None, gt=0)
    """A sequence is masked with any token of a ratio above it. Empty: no bound."""
    off_policy_delta: float | None = Field(default=None, gt=0)
    """A sequence of negative advantage is masked whose mean log(pi_old / pi in update) is above it (DeepSeek-V3.2);
    slime has 1e-4. Empty: off."""
    off_policy_against: Literal["engine", "trainer"] = "engine"
    """The pi_old of off_policy_delta: the probability in the engine, as the paper says, or in the trainer before the
    update, as in slime."""

    @property
    def parts(self) -> list[str]:
        """Names in `algorithms.registry.CORRECTIONS`; none where all is off."""
        return [
            *([] if self.token_weight == "off" else [self.token_weight]),
            *(["geometric"] if (self.geometric_low, self.geometric_high) != (None, None) else []),
            *(["outlier"] if (self.outlier_low, self.outlier_high) != (None, None) else []),
            *(["off_policy"] if self.off_policy_delta is not None else []),
        ]

    @model_validator(mode="after")
    def _check(self) -> RolloutCorrectionSection:
        conflicts = [*self._find_idle(), *self._find_bounds()]
        if conflicts:
            raise ValueError(CONFLICT_BREAK.join(conflicts))
        return self

    def _find_idle(self) -> Iterator[str]:
        """Keys that were set and would do nothing."""
        for weight, keys in WEIGHTS.items():
            for key in keys:
                value = getattr(self, key)
                if weight != self.token_weight and value != type(self).model_fields[key].default:
                    yield (
                        f'{_HERE}.{key} ({value:g}) is for {_HERE}.token_weight = "{weight}", and that is '
                        f'"{self.token_weight}": a token has one weight. Remedy: leave {key} out, or set '
                        f'token_weight = "{weight}"'
                    )
        if self.off_policy_against != "engine" and self.off_policy_delta is None:
            yield (
                f'{_HERE}.off_policy_against ("{self.off_policy_against}") is for {_HERE}.off_policy_delta, which is '
                "not set. Remedy: leave the first out, or set the second, such as 1e-4"
            )

    def _find_bounds(self) -> Iterator[str]:
        """Bounds between which a ratio of 1 is not: that of engine and trainer where they agree."""
        for name in ("icepop", "geometric", "outlier"):
            for side, is_wrong in (("low", lambda bound: bound >= 1), ("high", lambda bound: bound <= 1)):
                bound = getattr(self, f"{name}_{side}")
                if bound is not None and is_wrong(bound):
                    where = "below" if side == "low" else "above"
                    yield (
                        f"{_HERE}.{name}_{side} ({bound:g}) is not {where} 1, so that tokens of which engine and "
                        f"trainer agree would be masked. Remedy: set it {where} 1"
                    )
