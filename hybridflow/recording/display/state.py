"""The state that the display shows of a run, and the words for it. Pure: no terminal, no clock of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

REWARDS_IN_MEAN = 5


@dataclass(frozen=True)
class MetricNames:
    """Names under which the display looks in a step's metrics; one that is absent is not shown."""

    reward: str = "reward/mean"
    entropy: str = "policy/entropy"
    entropy_within_top_p: str = "policy/entropy_within_top_p"
    logprob_gap: str = "policy/logprob_gap"
    loss: str = "policy/loss"
    tokens_per_s: str = "_tokens_per_s"
    """Suffix: each metric `<group>/<phase>_tokens_per_s` is shown under `<phase>`."""


DEFAULT_NAMES = MetricNames()


@dataclass
class DisplayState:
    """Progress of a run. Times are seconds of the caller's monotonic clock."""

    title: str
    names: MetricNames
    started_at: float
    messages: deque[str]
    stage: str = ""
    phase: str = ""
    progress: str = ""
    """Work under way within the phase."""
    total_steps: int = 0
    first_step: int = 0
    next_step: int = 0
    """Steps of the stage that are done; also the number of the step in progress, counted from 0."""
    stage_started_at: float = 0.0
    phase_started_at: float = 0.0
    news_at: float = 0.0
    """When the run last moved: a stage, phase or step."""
    step_done_at: float = 0.0
    """When the last step of the stage was done; its begin before the first."""
    later: list[str] = field(default_factory=list)
    """Stages of the run that have not begun."""
    eval_s: float = 0.0
    """Seconds of the last evaluation: what follows the last step."""
    ends_with_eval: bool = False
    last: dict[str, float] = field(default_factory=dict)
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=REWARDS_IN_MEAN))

    def enter_stage(self, stage: str, total_steps: int, first_step: int, now: float) -> None:
        self.stage, self.total_steps, self.first_step, self.next_step = stage, total_steps, first_step, first_step
        self.enter_phase("", now)
        self.stage_started_at = self.step_done_at = now
        self.later = self.later[self.later.index(stage) + 1 :] if stage in self.later else []
        self.last = {}
        self.rewards.clear()

    def enter_phase(self, name: str, now: float) -> None:
        if self.phase == "EVAL":
            self.eval_s = now - self.phase_started_at
        self.phase, self.progress, self.phase_started_at, self.news_at = name, "", now, now

    def finish_step(self, step: int, metrics: Mapping[str, float], now: float) -> None:
        self.next_step, self.last, self.news_at, self.step_done_at = step + 1, dict(metrics), now, now
        if self.names.reward in metrics:
            self.rewards.append(metrics[self.names.reward])

    @property
    def mean_reward(self) -> float | None:
        """Mean reward of the last five steps; None before the first."""
        return sum(self.rewards) / len(self.rewards) if self.rewards else None

    def eta_s(self, now: float) -> float | None:
        """Seconds to the end of the run, or of the stage where `later` ones have not begun; None before the first step.

        The pace is that of the steps done since the stage began; the last evaluation counts as long as the one before.
        """
        done = self.next_step - self.first_step
        if done <= 0:
            return None
        pace_s = (self.step_done_at - self.stage_started_at) / done
        left_s = max(0.0, pace_s * (self.total_steps - self.next_step) - (now - self.step_done_at))
        return left_s + (self.eval_s if self.ends_with_eval and not self.later else 0.0)

    def eta(self, now: float) -> str:
        """`6:45`; `more than 0:20, then RL` while the pace of what follows is not known."""
        eta_s = self.eta_s(now)
        then = f", then {', '.join(self.later)}" if self.later else ""
        if eta_s is None:
            return f"after the first step of {self.later[-1] if self.later else self.stage}"
        return f"more than {format_duration(eta_s)}{then}" if self.later else format_duration(eta_s)

    def facts(self) -> dict[str, str]:
        """Measures of the last step under the names a user sees, in the order of the display."""
        names, last = self.names, self.last
        facts: dict[str, str] = {}
        if names.reward in last and self.mean_reward is not None:
            facts["reward"] = f"{last[names.reward]:.3f} (mean of {len(self.rewards)}: {self.mean_reward:.3f})"
        labels = {
            "loss": names.loss,
            "entropy": names.entropy,
            "entropy within top-p": names.entropy_within_top_p,
            "logprob gap": names.logprob_gap,
        }
        for label, key in labels.items():
            if key in last:
                facts[label] = f"{last[key]:.4g}"
        speeds = {
            key.rsplit("/", 1)[-1].removesuffix(names.tokens_per_s): value
            for key, value in last.items()
            if key.endswith(names.tokens_per_s)
        }
        if speeds:
            facts["tokens/s"] = ", ".join(f"{phase} {value:,.0f}" for phase, value in speeds.items())
        return facts


def plain_line(state: DisplayState, now: float) -> str:
    """`RL step 3/30 | reward 0.250 (mean of 3: 0.210) | entropy 1.2 | elapsed 0:45 | eta 6:45`; see `eta`."""
    parts = [f"{state.stage} step {state.next_step}/{state.total_steps}"]
    parts += [f"{label} {value}" for label, value in state.facts().items()]
    parts.append(f"elapsed {format_duration(now - state.started_at)}")
    parts.append(f"eta {state.eta(now)}")
    return " | ".join(parts)


def format_duration(seconds: float) -> str:
    """45 -> 0:45, 405 -> 6:45, 3725 -> 1:02:05."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
