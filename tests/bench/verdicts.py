"""Right answers that rule, judge, and the larger of both find, and wrong ones that they pass; prints one JSON line.

    python tests/bench/verdicts.py --cases ../shared/data/verdict_cases.jsonl

The cases are JSON lines `{"ability", "kind", "gold", "response", "right"}`, `right` 0 or 1. The judge is a server on
the loopback that has the key: it says YES where `right` is 1, whatever it is shown. So what it does not find was never
shown to it: no answer could be read, or it is a choice among letters. It is asked through the client of training,
about every answer for its own figures, and where the rule gave less than 1 for those of both.

`recall` is rewarded right answers over right answers, `false_pass` rewarded wrong ones over wrong ones; `unknown`
counts verdicts that were not reached.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2]))

from hybridflow.config.judge_section import JudgeSection
from hybridflow.config.reward_sections import RulesSection
from hybridflow.reward_service.judge.client import JudgeClient
from hybridflow.rewards.extraction.extract import extract_gold
from hybridflow.rewards.judge_verdict import combine, find_prediction
from hybridflow.rewards.registry import Registry
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict
from tests.bench.judge_server import JudgeServer

CASE = re.compile(r"Case number (\d+)\?")


class KeyServer(JudgeServer):
    """Says what the key says of the case that its question names."""

    def __init__(self, key: list[bool]) -> None:
        super().__init__()
        self.key = key

    def agrees(self, request: str) -> bool:
        found = CASE.search(request)
        return found is not None and self.key[int(found[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    options = parser.parse_args()
    cases = [json.loads(line) for line in options.cases.read_text(encoding="utf-8").splitlines() if line.strip()]
    with KeyServer([case["right"] == 1 for case in cases]).serving() as server:
        outcomes = asyncio.run(judge_all(cases, JudgeSection(endpoints=[server.url])))
    names = ("rule", "judge", "both")
    print(
        json.dumps(
            {"cases": len(cases), "right": sum(case["right"] for case in cases)}
            | {name: summarise(cases, [outcome[at] for outcome in outcomes]) for at, name in enumerate(names)}
        )
    )


async def judge_all(cases: list[dict[str, Any]], section: JudgeSection) -> list[tuple[Verdict, Verdict, Verdict]]:
    """(rule, judge alone, both) of each case."""
    client, rules = JudgeClient(section, random.Random(0)), Registry(RulesSection())

    async def judge(number: int, case: dict[str, Any]) -> tuple[Verdict, Verdict, Verdict]:
        request = ScoreRequest(
            completion_id=str(number),
            data_source="cases",
            ability=case["ability"],
            ground_truth=case["gold"],
            text=case["response"],
        )
        rule = rules.verify(request)
        if isinstance(rule, Unknown):
            return rule, rule, rule
        failed = msgspec.structs.replace(rule, value=0.0)
        shown = find_prediction(failed, request.text)
        if not shown:
            return rule, failed, rule
        gold = extract_gold(request.ground_truth).text or request.ground_truth
        judgement = await client.decide(f"Case number {number}?", shown, gold)
        alone = combine(failed, judgement.vote, "key", judgement.why)
        return rule, alone, rule if rule.value >= 1 else combine(rule, judgement.vote, "key", judgement.why)

    try:
        return list(await asyncio.gather(*(judge(number, case) for number, case in enumerate(cases))))
    finally:
        await client.close()


def summarise(cases: list[dict[str, Any]], verdicts: list[Verdict]) -> dict[str, float]:
    passed = [isinstance(verdict, Scored) and verdict.value >= 1 for verdict in verdicts]
    right = [passes for passes, case in zip(passed, cases, strict=True) if case["right"]]
    wrong = [passes for passes, case in zip(passed, cases, strict=True) if not case["right"]]
    return {
        "recall": round(sum(right) / len(right), 3),
        "false_pass": round(sum(wrong) / len(wrong), 3),
        "unknown": sum(isinstance(verdict, Unknown) for verdict in verdicts),
    }


if __name__ == "__main__":
    main()
