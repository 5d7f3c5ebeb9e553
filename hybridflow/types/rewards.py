"""Verdicts, and completions that have one."""

from __future__ import annotations

from typing import Literal

import msgspec

from hybridflow.types.rollout import Completion, Prompt, without_numbers


class JudgeReport(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Totals of the judge of one reward worker since that worker's process started; travels with its verdicts."""

    process: str
    """Tells a process that took over the id of a dead one from the same process later on."""
    number: int
    """Counts the reports of this process from 1."""
    counts: dict[str, float]
    """Totals by name: requests, answers, prompt_tokens, cost, failures/busy, breaker_opened, ..."""
    endpoints: dict[str, str]
    """State of the circuit breaker by URL: closed, half_open or open."""


class Scored(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="scored"):
    """A verdict that was reached."""

    value: float
    """Reward in [0, 1]."""
    rule: str
    """Name of the rule that decided."""
    extracted: str
    """Answer found in the completion; empty where none was."""
    why: str
    predicted_form: str = ""
    """Form of the completion that was compared: normalised text, number, letter; empty where nothing was."""
    gold_form: str = ""
    """Form of the gold that it was compared with."""
    judge: str = ""
    """Name of the model judge that was asked after the rule; empty where none was."""
    judge_vote: Literal["", "yes", "no"] = ""
    """The vote of that judge."""
    rule_value: float | None = None
    """Reward by the rule alone, where a judge was asked after it; None: `value` is the rule's."""
    parts: dict[str, float] = {}
    """Values by name: of each of several verifiers, and of what a verifier of a user's own says beside its value."""
    judged_part: str = ""
    """Name of the part that a judge decides on: the rule, where others stand beside it. Empty: the whole."""
    judge_share: float = 1.0
    """Weight of that part in `value`."""
    judge_report: JudgeReport | None = None


class Unknown(msgspec.Struct, frozen=True, kw_only=True, gc=False, tag="unknown"):
    """No verdict could be reached. It is not a reward of 0: its completion leaves the statistics of its group."""

    why: str
    rule: str = ""
    """Name of the rule that had something to say before this became unknown, or that could not say it."""
    extracted: str = ""
    """Answer found in the completion, where that much is known."""
    judge_report: JudgeReport | None = None


Verdict = Scored | Unknown


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One completion as a verifier sees it."""

    completion_id: str
    data_source: str
    ability: str
    ground_truth: str
    text: str
    alternatives: list[str] = []
    """Further gold answers: any of them is right."""
    question: str = ""
    row: str = ""
    """JSON {"prompt": [...], "extra_info": {...}}: what a verifier of the run takes of the row; else empty."""

    @property
    def golds(self) -> list[str]:
        """All gold answers, in the order of the row."""
        return [self.ground_truth, *self.alternatives]


class ScoredCompletion:
    """A completion with the verdict it got and the worker that gave it.

    One that came over the wire stays packed, in a fifth of the memory, until its text or its numbers are needed
    (`wire.messages.ScoredPacked`); those of a group that the filters leave out never are.
    """

    __slots__ = ("_completion", "head", "scored_by", "verdict")

    head: Completion
    """It without its text and its numbers, which are empty."""

    def __init__(self, *, completion: Completion, verdict: Verdict, scored_by: str) -> None:
        self._completion = completion
        self.head = without_numbers(completion)
        self.verdict = verdict
        self.scored_by = scored_by

    @property
    def completion(self) -> Completion:
        """With its text and its numbers; where it is packed, made at each use."""
        return self._completion

    @property
    def text(self) -> str:
        return self.completion.text

    @property
    def num_tokens(self) -> int:
        return len(self.completion.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoredCompletion):
            return NotImplemented
        mine, theirs = ((it.verdict, it.scored_by, it.completion) for it in (self, other))
        return mine == theirs


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """All completions of one prompt in one step, in index order."""

    group_id: str
    prompt: Prompt
    members: list[ScoredCompletion]
