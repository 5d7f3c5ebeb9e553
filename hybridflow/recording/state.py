"""State of a run: progress and totals, saved with every checkpoint, from which a stopped run goes on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hybridflow.curriculum.source import SavedSource
from hybridflow.errors import CheckpointError
from hybridflow.reading import Unreadable, read_json
from hybridflow.recording.accuracy import TEST, EvalResult
from hybridflow.recording.lengths import LengthTotals
from hybridflow.types import PartialGroup


class GroupCounts(msgspec.Struct, kw_only=True):
    """Groups since the start of RL; `started` = `trained` + all `filtered` + `discarded` + those carried over."""

    started: int = 0
    trained: int = 0
    filtered: dict[str, int] = {}
    """Groups left out of training, by reason."""
    discarded: int = 0
    """Carried over and then given up: as too old, and their prompts begun again, or at the end of a phase."""
    short_steps: int = 0
    """Steps that had too few groups that count after too many tries."""


class RunState(msgspec.Struct, kw_only=True):
    """Progress and running totals. RL steps are numbered from 1; `rl_step` is the last one done."""

    warmup_stages_done: int = 0
    rl_step: int = 0
    source: SavedSource | None = None
    """State of the source of prompts; None in checkpoints of earlier versions, see `curriculum.source`."""
    policy_version: int = 0
    """Version of the present weights: the number of RL steps that have changed them."""
    groups: GroupCounts = msgspec.field(default_factory=GroupCounts)
    lengths: LengthTotals = msgspec.field(default_factory=LengthTotals)
    num_skipped_updates: int = 0
    reward_means: list[float | None] = []
    """Mean reward of each RL step, over all known verdicts, before filters; None where none was known."""
    gap_sum: float = 0.0
    """Sum of |old_logprobs - rollout_logprobs| over trained tokens."""
    gap_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    rollout_events: dict[str, int] = {}
    """Leases and engines lost and completions dropped, by name; evaluation not included."""
    phase_seconds: dict[str, float] = {}
    wall_s: float = 0.0
    """Seconds of earlier processes of this run; the present one comes on top."""
    evals_before: dict[str, EvalResult] = {}
    """Results of the evaluation that RL started from, by name of the set; empty where there was none."""
    evals_latest: dict[str, EvalResult] = {}
    """Results of the last evaluation."""
    num_unknown: int = 0
    """Verdicts of training that stayed unknown."""
    num_truncated: int = 0
    """Completions that reached max_new_tokens."""
    num_completions: int = 0
    """Completions of training that have been decoded and judged."""
    num_unanswered: int = 0
    """Completions among these in which no answer was found, behind a mark such as "the answer is"."""
    is_masking_negatives: bool = False
    """AEPO left completions of negative advantage out of the last step."""
    num_idle_steps: int = 0
    """Steps since the last one that had a group to train on."""
    overlong_sum: float = 0.0
    """Sum of the overlong penalties of all completions of training."""
    num_shaped: int = 0
    """Completions that this is the sum of."""
    judge: dict[str, float] = {}
    """Requests to the judge, answers and cost, by name, evaluation included."""
    peak_rss_gib: float = 0.0

    def give_up(self, groups: Sequence[PartialGroup]) -> None:
        """Counts groups that were begun and that no step will train on."""
        self.groups.discarded += len(groups)
        self.lengths.give_up(groups)

    @property
    def num_prompts_taken(self) -> int:
        """Prompts taken from the source, for checkpoints that do not hold its state: their runs had no phases, and
        began a discarded group's prompt more than once."""
        return self.groups.started - self.groups.discarded

    @property
    def last_recorded_step(self) -> int:
        """Step whose metrics and evaluation are the last that count; -1 before the evaluation that precedes RL."""
        return -1 if self.rl_step == 0 and not self.evals_before else self.rl_step

    @property
    def logprob_gap_mean_abs(self) -> float:
        """Mean per token, not-a-number before anything was trained on."""
        return self.gap_sum / self.gap_tokens if self.gap_tokens else math.nan

    def add_seconds(self, phase: str, seconds: float) -> None:
        self.phase_seconds[phase] = self.phase_seconds.get(phase, 0.0) + seconds


def write_state(state: RunState, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))


def read_state(path: Path) -> RunState:
    """Raises CheckpointError if the file is missing or not a state."""
    try:
        return msgspec.convert(_with_evals_by_name(read_json(path)), RunState)
    except (OSError, Unreadable, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path}: not a readable run state: {error}") from error


def _with_evals_by_name(fields: Any) -> Any:
    """Checkpoints of earlier versions hold the results of the test set alone, a field for each number."""
    if not isinstance(fields, dict):
        return fields
    for when in ("before", "latest"):
        accuracy, bounds = fields.get(f"eval_{when}"), fields.get(f"eval_bounds_{when}")
        if accuracy is not None or bounds is not None:
            fields[f"evals_{when}"] = {TEST: {"accuracy": accuracy, "bounds": bounds}}
    return fields
