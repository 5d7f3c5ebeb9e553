"""Totals of the judges of all reward workers, from the reports that travel with their verdicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from hybridflow.types import Group, JudgeReport, Scored

_WORST = ("closed", "half_open", "open")


class JudgeTotals:
    """Totals of a run, and what was added since the last line of metrics, of a step or an evaluation.

    A report holds the totals of one worker's process, so of each process the last one counts, in whatever order
    verdicts come; what a process did after its last verdict is missing.

    Args:
        totals: Of the run so far, by name; added to.
    """

    def __init__(self, totals: dict[str, float]) -> None:
        self._totals = totals
        self._reports: dict[tuple[str, str], JudgeReport] = {}  # by worker and process
        self._new: defaultdict[str, float] = defaultdict(float)
        self._told_down: dict[str, bool] = {}  # by URL

    def add(self, groups: Iterable[Group]) -> None:
        """Takes the reports on the verdicts of complete groups."""
        for group in groups:
            for member in group.members:
                verdict = member.verdict
                if isinstance(verdict, Scored) and verdict.judge_vote:
                    self._count(verdict.judge_vote, 1.0)
                if verdict.judge_report is not None:
                    self._take(member.scored_by, verdict.judge_report)

    def take_metrics(self) -> dict[str, float]:
        """`judge/<name>` of what happened since the last call; empty while no judge was asked."""
        if not self._reports:
            return {}
        metrics = {f"judge/{name}": self._new[name] for name in self._totals}
        metrics["judge/endpoints_down"] = float(sum(state != "closed" for state in self._states().values()))
        self._new.clear()
        return metrics

    def summary(self) -> dict[str, Any] | None:
        """Totals by name, and the last known state of each endpoint at any worker; None where no judge was asked."""
        totals = {
            name: int(number) if number.is_integer() else round(number, 6) for name, number in self._totals.items()
        }
        return {**totals, "endpoints": self._states()} if totals else None

    def take_news(self) -> list[str]:
        """Tells of endpoints that are cut off now and were not before, or the other way round."""
        news: list[str] = []
        for url, state in self._states().items():
            if (is_down := state != "closed") != self._told_down.get(url, False):
                self._told_down[url] = is_down
                news.append(f"judge {url} {'is cut off: most of its calls failed' if is_down else 'answers again'}")
        return news

    def _take(self, worker_id: str, report: JudgeReport) -> None:
        key = (worker_id, report.process)
        before = self._reports.get(key)
        if before is not None and before.number >= report.number:
            return
        self._reports[key] = report
        for name, number in report.counts.items():
            self._count(name, number - (before.counts.get(name, 0.0) if before else 0.0))

    def _count(self, name: str, number: float) -> None:
        self._totals[name] = self._totals.get(name, 0.0) + number
        self._new[name] += number

    def _states(self) -> dict[str, str]:
        """By URL, the worst that the last process of each worker said."""
        latest = {worker_id: report for (worker_id, _), report in self._reports.items()}
        states: dict[str, str] = {}
        for report in latest.values():
            for url, state in report.endpoints.items():
                states[url] = max(states.get(url, "closed"), state, key=_WORST.index)
        return states
