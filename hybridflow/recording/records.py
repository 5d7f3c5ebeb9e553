"""completions.jsonl: one line per completion, with what it got and why."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridflow.data.row_reference import RowReference
from hybridflow.recording.step_lines import cut, find_end, writing
from hybridflow.types import Group, Prompt, Scored, ScoredCompletion


class CompletionRecord:
    """Appends whole steps to a JSONL file, groups in order; all but `time` is the same for the same config and seed."""

    def __init__(self, path: Path, documents: Mapping[str, RowReference] | None = None) -> None:
        """`documents`: where each prompt comes from, by its id; the record refers to it, and does not repeat it."""
        self._path = path
        self._documents = documents or {}

    def append(
        self,
        step: int,
        groups: list[Group],
        overlong: Mapping[str, Sequence[float]] | None = None,
        kl_prices: Mapping[str, float] | None = None,
    ) -> None:
        """Writes every member of every group and has it on disk before it returns.

        `overlong` holds the overlong penalties by group id, in member order, where there are any; `kl_prices`, by
        completion id, what was subtracted for the distance from the reference.
        """
        now = time.time()
        lines: list[str] = []
        for group in groups:
            penalties = (overlong or {}).get(group.group_id) or [0.0] * len(group.members)
            for member, penalty in zip(group.members, penalties, strict=True):
                line = _line(step, member, penalty, now) | _describe_prompt(group.prompt, self._documents)
                if (price := (kl_prices or {}).get(member.head.completion_id)) is not None:
                    line["kl_price"] = price
                lines.append(json.dumps(line, ensure_ascii=False))
        with writing(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write("".join(line + "\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())

    def truncate_after(self, step: int) -> None:
        """Drops the lines of later steps, and a line that a crash left half written.

        Raises DataError, with the file as it is, if a whole line is no record.
        """
        cut(self._path, find_end(self._path, step, kind="a completion"))


def _describe_prompt(prompt: Prompt, documents: Mapping[str, RowReference]) -> dict[str, Any]:
    """Question, gold answer, and the document by reference."""
    reference = documents.get(prompt.prompt_id)
    return {
        "question": prompt.question or None,
        "gold": [prompt.ground_truth, *prompt.alternatives] if prompt.alternatives else prompt.ground_truth,
        "document": None if reference is None else reference._asdict(),
    }


def _line(step: int, member: ScoredCompletion, penalty: float, now: float) -> dict[str, Any]:
    completion, verdict = member.head, member.verdict
    scored = isinstance(verdict, Scored)
    runs = completion.versions
    versions = {"versions": [[run.version, run.num_tokens] for run in runs]} if len(runs) > 1 else {}
    return versions | {
        "step": step,
        "prompt_id": completion.prompt_id,
        "group_id": completion.group_id,
        "completion_id": completion.completion_id,
        "policy_version": completion.policy_version,
        "text": member.text,
        "verdict": {
            "status": "scored" if scored else "unknown",
            "rule": verdict.rule if scored else None,
            "rule_reward": _rule_reward(verdict) if scored else None,
            "judge": (verdict.judge or None) if scored else None,
            "judge_vote": (verdict.judge_vote or None) if scored else None,
            "extracted": verdict.extracted if scored else None,
            "predicted_form": verdict.predicted_form if scored else None,
            "gold_form": verdict.gold_form if scored else None,
            "why": verdict.why,
            **({"parts": verdict.parts} if isinstance(verdict, Scored) and verdict.parts else {}),
        },
        "reward": verdict.value if scored else None,
        "overlong": penalty,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "response_tokens": member.num_tokens,
        "time": round(now, 3),
    }


def _rule_reward(verdict: Scored) -> float:
    """Reward of the rule alone."""
    return verdict.value if verdict.rule_value is None else verdict.rule_value
