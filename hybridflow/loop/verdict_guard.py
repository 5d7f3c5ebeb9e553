"""Verdict guard: stops a run whose verdicts stay unknown, and says which verifier or judge is ill."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from hybridflow.errors import RewardError
from hybridflow.types import Group, Prompt, Scored, ScoredCompletion, Unknown, Verdict

WINDOW = 1000
"""Verdicts that are looked back on."""
MIN_VERDICTS = 64
"""Fewer are not judged: one unknown in a small step says nothing."""
MIN_ASKED_UNKNOWN = 8
"""The same of a judge, counted in what it left unknown: it may be asked seldom, and then fail at each time."""
NUM_EXAMPLES = 3


class VerdictGuard:
    """Counts the last `WINDOW` verdicts of a run, and the last `WINDOW` of those that a judge was asked for.

    Unknown verdicts are in no statistics, and they are not a sample of all: only answers that the rule thought wrong go
    to the judge. A judge that fails leaves those that the rule thought right, so the mean rises, the more the better
    the policy is; of all verdicts few are unknown then. So those asked for count by themselves, too.
    """

    def __init__(self, max_fraction: float) -> None:
        self._max_fraction = max_fraction
        self._recent: deque[_Unknown | None] = deque(maxlen=WINDOW)  # None: scored
        self._asked: deque[_Unknown | None] = deque(maxlen=WINDOW)

    def add(self, groups: Iterable[Group]) -> None:
        """Takes the verdicts of complete groups.

        Raises:
            RewardError: more than `max_fraction` of the recent verdicts, or of those that a judge was asked for, are
                unknown; with counts by who was asked last, and examples.
        """
        self._look(groups, self._recent, self._asked)

    def look(self, groups: Iterable[Group]) -> None:
        """Raises as `add` would, and takes nothing: for what there is of a step before it goes on."""
        self._look(groups, self._recent.copy(), self._asked.copy())

    def _look(self, groups: Iterable[Group], recent: deque[_Unknown | None], asked: deque[_Unknown | None]) -> None:
        for group in groups:
            for member in group.members:
                entry = _read(member, group.prompt)
                recent.append(entry)
                if was_judge_asked(member.verdict):
                    asked.append(entry)
        if len(recent) >= MIN_VERDICTS:
            self._check(recent, "verdicts")
        if sum(entry is not None for entry in asked) >= MIN_ASKED_UNKNOWN:
            self._check(asked, "verdicts that the judge was asked for")

    def _check(self, recent: deque[_Unknown | None], of_what: str) -> None:
        unknown = [entry for entry in recent if entry is not None]
        if len(unknown) <= self._max_fraction * len(recent):
            return
        counts = ", ".join(f"{name}: {n}" for name, n in Counter(entry.name for entry in unknown).most_common())
        reasons: dict[str, str] = {}
        for entry in unknown:
            reasons.setdefault(entry.why, entry.completion_id)
        examples = "; ".join(f"{completion_id}: {why}" for why, completion_id in list(reasons.items())[-NUM_EXAMPLES:])
        raise RewardError(
            f"{len(unknown)} of the last {len(recent)} {of_what} are unknown, more than "
            f"reward.max_unknown_fraction = {self._max_fraction:g} allows: {counts}. For example {examples}. "
            f"Remedy: repair the verifier or judge that these name, then --resume; groups without them were trained on"
        )


def was_judge_asked(verdict: Verdict) -> bool:
    """True where the rule left the verdict to a judge, whatever that said."""
    return verdict.judge_report is not None or (isinstance(verdict, Scored) and bool(verdict.judge_vote))


class _Unknown(NamedTuple):
    name: str
    """Who did not say."""
    completion_id: str
    why: str


def _read(member: ScoredCompletion, prompt: Prompt) -> _Unknown | None:
    verdict = member.verdict
    if not isinstance(verdict, Unknown):
        return None
    return _Unknown(_name_of(verdict, prompt), member.head.completion_id, verdict.why)


def _name_of(verdict: Unknown, prompt: Prompt) -> str:
    """Names who reached no verdict: the model judge, where it was asked; else the rule, or that of this kind of row."""
    if verdict.judge_report is not None:
        endpoints = ", ".join(f"{url} {state}" for url, state in verdict.judge_report.endpoints.items())
        return f"model judge ({endpoints})"
    return f"verifier {verdict.rule or f'of {prompt.data_source} / {prompt.ability}'}"
