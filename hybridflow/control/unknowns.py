"""Stops a run whose verdicts stay unknown, and says which verifier or judge is ill."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from hybridflow.errors import RewardError
from hybridflow.types import Group, Prompt, Unknown

WINDOW = 1000
"""Verdicts that are looked back on."""
MIN_VERDICTS = 64
"""Fewer are not judged: one unknown in a small step says nothing."""
NUM_EXAMPLES = 3


class UnknownGuard:
    """Counts the last `WINDOW` verdicts of a run, of training and evaluation together.

    Unknown verdicts are in no statistics: without this, an ill judge would quietly shrink every group.
    """

    def __init__(self, max_fraction: float) -> None:
        self._max_fraction = max_fraction
        self._recent: deque[tuple[str, str, str] | None] = deque(maxlen=WINDOW)  # None: scored

    def add(self, groups: Iterable[Group]) -> None:
        """Takes the verdicts of complete groups.

        Raises:
            RewardError: more than `max_fraction` of the recent verdicts are unknown; with counts by who was asked
                last, and examples.
        """
        for group in groups:
            for member in group.members:
                verdict = member.verdict
                if isinstance(verdict, Unknown):
                    self._recent.append((_name_of(verdict, group.prompt), member.head.completion_id, verdict.why))
                else:
                    self._recent.append(None)
        unknown = [entry for entry in self._recent if entry is not None]
        if len(self._recent) < MIN_VERDICTS or len(unknown) <= self._max_fraction * len(self._recent):
            return
        by_name = Counter(name for name, _, _ in unknown)
        counts = ", ".join(f"{name}: {number}" for name, number in by_name.most_common())
        reasons: dict[str, str] = {}
        for _, completion_id, why in unknown:
            reasons.setdefault(why, completion_id)
        examples = "; ".join(f"{completion_id}: {why}" for why, completion_id in list(reasons.items())[-NUM_EXAMPLES:])
        raise RewardError(
            f"{len(unknown)} of the last {len(self._recent)} verdicts are unknown, more than "
            f"reward.max_unknown_fraction = {self._max_fraction:g} allows: {counts}. For example {examples}. "
            f"Remedy: repair the verifier or judge that these name, then --resume; groups without them were trained on"
        )


def _name_of(verdict: Unknown, prompt: Prompt) -> str:
    """Who did not say: the model judge, where it was asked; else the rule, or that of this kind of row."""
    if verdict.judge_report is not None:
        endpoints = ", ".join(f"{url} {state}" for url, state in verdict.judge_report.endpoints.items())
        return f"model judge ({endpoints})"
    return f"verifier {verdict.rule or f'of {prompt.data_source} / {prompt.ability}'}"
