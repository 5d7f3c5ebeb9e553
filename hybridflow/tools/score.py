"""`hybridflow score`: a verdict on each response, by the service that training uses, in file order, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from hybridflow.config.judge_section import JudgeSection
from hybridflow.config.reward_sections import RewardSection
from hybridflow.data.files import find_files
from hybridflow.data.records import refuse_problems
from hybridflow.data.row_reference import dump_row
from hybridflow.data.rows import read_rows
from hybridflow.data.schema import BadRow, Row
from hybridflow.errors import ConfigError
from hybridflow.find_function import source_of
from hybridflow.rewards.judge_question import find_question
from hybridflow.rewards.registry import build_registry
from hybridflow.tools.output_file import OutputFile
from hybridflow.tools.progress import RowProgress
from hybridflow.tools.score_input import Response, ResponseFile
from hybridflow.tools.score_service import ScoreService, open_service
from hybridflow.types import Completion, GroupRequest, Prompt, Scored, Unknown, Verdict
from hybridflow.wire.messages import build_completion_id

MAX_PENDING = 1024
"""Responses that are being scored or wait for an earlier one."""
NUM_SHOWN = 3
"""Reasons of unknown verdicts that the command names."""
MAX_PENDING_CHARS = 8 * 2**20


@dataclass(frozen=True)
class ScoreJob:
    """The job that a command line asks for."""

    data: Path
    responses: Path
    output: Path
    reward: RewardSection = field(default_factory=RewardSection)
    num_workers: int = 1
    overwrite: bool = False


@dataclass(frozen=True)
class ScoreSummary:
    """Totals of the whole output, lines of an earlier run included."""

    num_written: int
    """Responses among these that this run scored."""
    num_scored: int
    num_unknown: int
    reward_sum: float
    unknown: list[str]
    """The first rows without a verdict, and why, each reason once."""
    judge: list[dict[str, Any]]
    """Reports of the judge's client of each worker; empty without a judge."""

    def lines(self, output: Path) -> Iterator[str]:
        """For the user."""
        mean = f", mean reward {self.reward_sum / self.num_scored:.4f}" if self.num_scored else ""
        bounds = ""
        if self.num_unknown:  # no random part of all: see loop.verdict_guard
            number = self.num_scored + self.num_unknown
            low, high = self.reward_sum / number, (self.reward_sum + self.num_unknown) / number
            bounds = f" (mean of all between {low:.4f} and {high:.4f}, the unknown as 0 and as 1)"
        counts = f"{self.num_scored} scored{mean}, {self.num_unknown} unknown{bounds}"
        yield f"{output}: {self.num_written} written; {counts}"
        yield from self.unknown
        if self.num_unknown:
            yield 'the "why" of an unknown verdict names the judge or verifier that is ill; --overwrite asks again'
        for report in self.judge:
            tokens = report["prompt_tokens"] + report["completion_tokens"]
            yield (
                f"judge: {report['verdicts']} verdicts ({report['cached']} from the cache), {report['unknown']} "
                f"unknown, {report['requests']} requests, {tokens} tokens, failures {report['failures'] or 'none'}"
            )
            for url, endpoint in report["endpoints"].items():
                if number := endpoint["num_opened"]:
                    yield f"judge {url}: {endpoint['state']}, was cut off {number} times, last for {endpoint['why']}"


def write_verdicts(job: ScoreJob, progress: RowProgress) -> ScoreSummary:
    """Appends the verdicts that are missing; line n is the verdict on response n.

        {"index", "k", "status": "scored" | "unknown", "reward", "rule", "judge", "extracted", "why"}

    and "parts" where several functions, or named parts of one, have values of their own.
    A response, or a row, that cannot be used is unknown with its reason; only where none can, nothing is scored.
    `k` counts the responses to one row, `reward` is null where the verdict is unknown, `rule` names the rule that
    looked at the answer, `judge` is "yes", "no" or null where none was asked or it did not say. Raises DataError or
    ConfigError, with nothing written, before any work is done, and RewardError if the service fails.
    """
    if job.num_workers < 1:
        raise ConfigError(f"--num-workers {job.num_workers}: it must be at least 1")
    wanted = build_registry(job.reward).row_arguments
    rows = read_rows(job.data)
    problems = [row.why for row in rows if isinstance(row, BadRow)]
    if len(problems) == len(rows):
        refuse_problems(job.data, problems, len(rows))
    output = OutputFile(job.output, data=job.data, responses=job.responses)
    responses = ResponseFile(job.responses, len(rows), job.data)
    total, digest = responses.check()
    done, moved = output.resume(_describe(job, rows, digest), overwrite=job.overwrite)
    if moved is not None:
        progress.note(f"{job.output} held something else, which is kept as {moved}")
    progress(done, total)
    reports: list[dict[str, Any]] = []
    if done < total:
        with (
            open_service(job.reward, job.num_workers) as service,
            job.output.open("a", encoding="utf-8") as file,
        ):
            for number, (response, verdict) in enumerate(
                _score(service, rows, responses, done, partial(_build, job.reward.judge, wanted)), start=done + 1
            ):
                file.write(json.dumps(_line(response, verdict), ensure_ascii=False) + "\n")
                file.flush()
                progress(number, total)
            reports = service.judge_reports()
    return _summarise(job.output, max(total - done, 0), reports)


def _describe(job: ScoreJob, rows: Sequence[Row | BadRow], responses_sha256: str) -> dict[str, Any]:
    """The settings that decide the verdicts."""
    judge = job.reward.judge
    return {
        "data": str(job.data.resolve()),
        "data_rows": len(rows),
        "data_bytes": sum(file.stat().st_size for file in find_files(job.data)),
        "responses_sha256": responses_sha256,
        "rules": job.reward.rules.model_dump(mode="json"),
        **_describe_functions(job.reward),
        "judge": [judge.model, judge.num_votes, judge.max_tokens] if judge.endpoints else None,
    }


def _describe_functions(reward: RewardSection) -> dict[str, Any]:
    """The verifiers of the user's own with what their files hold: one that was changed gives other verdicts."""
    names = [*reward.rules.verifiers.values(), *(function.call for function in reward.functions)]
    files = {name: source_of(name, reward.module_folders) for name in names if ":" in name}
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if file is not None}
    functions = [function.model_dump(mode="json") for function in reward.functions]
    return ({"functions": functions} if functions else {}) | ({"sources": digests} if digests else {})


def _score(
    service: ScoreService,
    rows: Sequence[Row | BadRow],
    responses: ResponseFile,
    skip: int,
    build: Callable[[int, Response, Row], tuple[GroupRequest, Completion]],
) -> Iterator[tuple[Response, Verdict]]:
    """Each response with its verdict, in order, while later ones are being scored."""
    source = enumerate(islice(responses, skip, None), start=skip)
    pending: dict[str, Response] = {}  # in order
    num_chars = 0
    known: dict[str, Verdict] = {}
    is_exhausted = False
    while not is_exhausted or pending:
        while not is_exhausted and len(pending) < MAX_PENDING and num_chars < MAX_PENDING_CHARS:
            number, response = next(source, (0, None))
            if response is None:
                is_exhausted = True
                break
            num_chars += len(response.text)
            if problem := _problem_of(response, rows):
                name = f"unusable-{number}"
                pending[name], known[name] = response, Unknown(why=problem)
                continue
            row = rows[response.index or 0]
            assert isinstance(row, Row)
            request, completion = build(number, response, row)
            service.submit(request, completion)
            pending[completion.completion_id] = response
        while pending and (first := next(iter(pending))) in known:
            response = pending.pop(first)
            num_chars -= len(response.text)
            yield response, known.pop(first)
        if pending:
            completion_id, verdict = service.next()
            known[completion_id] = verdict


def _problem_of(response: Response, rows: Sequence[Row | BadRow]) -> str:
    """Why it cannot be scored; "" where it can."""
    if response.problem or response.index is None:
        return response.problem
    row = rows[response.index]
    return row.why if isinstance(row, BadRow) else ""


def _build(
    judge: JudgeSection, row_arguments: frozenset[str], number: int, response: Response, row: Row
) -> tuple[GroupRequest, Completion]:
    """A response as a group of one completion, as the stream knows it."""
    group_id = f"score-{number:09d}"
    prompt = Prompt(
        prompt_id=f"row-{response.index:06d}",
        token_ids=[],
        data_source=row.data_source,
        ability=row.ability,
        ground_truth=row.reward_model.ground_truth,
        alternatives=row.reward_model.alternatives,
        question=find_question(row.prompt, row.extra_info, judge).text,
        row=dump_row(row, row_arguments),
    )
    request = GroupRequest(group_id=group_id, prompt=prompt, num_completions=1)
    completion = Completion(
        completion_id=build_completion_id(group_id, 0),
        group_id=group_id,
        prompt_id=prompt.prompt_id,
        index=0,
        text=response.text,
        finish_reason="stop",
        policy_version=0,
        prompt_tokens=0,
        cached_tokens=0,
    )
    return request, completion


def _line(response: Response, verdict: Verdict) -> dict[str, Any]:
    is_scored = isinstance(verdict, Scored)
    parts = {"parts": verdict.parts} if is_scored and verdict.parts else {}
    return {
        "index": response.index,
        "k": response.k,
        "status": "scored" if is_scored else "unknown",
        "reward": verdict.value if is_scored else None,
        "rule": verdict.rule or None,
        "judge": verdict.judge_vote or None if is_scored else None,
        "extracted": verdict.extracted,
        "why": verdict.why,
        **parts,
    }


def _summarise(path: Path, num_written: int, reports: list[dict[str, Any]]) -> ScoreSummary:
    num_scored = num_unknown = 0
    reward_sum = 0.0
    reasons: dict[str, str] = {}
    with path.open(encoding="utf-8") as file:
        for line in file:
            verdict = json.loads(line)
            if verdict["status"] == "scored":
                num_scored += 1
                reward_sum += verdict["reward"]
            else:
                num_unknown += 1
                place = "" if verdict["index"] is None else f"row {verdict['index']}, response {verdict['k']}: "
                reasons.setdefault(verdict["why"], place + verdict["why"])
    shown = list(reasons.values())[:NUM_SHOWN]
    return ScoreSummary(num_written, num_scored, num_unknown, reward_sum, shown, reports)
