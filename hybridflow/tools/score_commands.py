"""The command `hybridflow score`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridflow.tools.commands import GOES_ON, interruptible
from hybridflow.tools.options import Overrides
from hybridflow.tools.progress import RowProgress, note

if TYPE_CHECKING:
    from hybridflow.tools.score import ScoreJob

EXIT_UNKNOWN = 3
"""Exit code of `hybridflow score` where all was done, and some verdicts are unknown. (2: a wrong command line.)"""


class Compat(StrEnum):
    none = "none"
    qwenlong_l1 = "qwenlong_l1"


def mount(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(score)


def score(
    data: Annotated[Path, typer.Option(help="Rows in the DocQA-RL schema: .parquet or .jsonl.")],
    responses: Annotated[
        Path, typer.Option(help='JSON lines, each {"index": row, "response": "..."}; several per row are allowed.')
    ],
    output: Annotated[Path, typer.Option(help="JSON lines, one verdict per response, in their order.")],
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="Training configuration whose rewards are taken; several are laid over."),
    ] = None,
    set_: Overrides = None,
    verifier: Annotated[
        list[str] | None,
        typer.Option(help="module:function that scores every row, in place of the rules; give several or repeat."),
    ] = None,
    judge_url: Annotated[
        list[str] | None,
        typer.Option(help="OpenAI-compatible server to ask where the rule gives less than 1; give several or repeat."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the model at these servers; default: judge.")] = None,
    judge_votes: Annotated[int | None, typer.Option(help="Votes, odd; the majority decides; default: 1.")] = None,
    judge_concurrency: Annotated[int | None, typer.Option(min=1, help="Requests to each at once; default: 16.")] = None,
    judge_deadline_s: Annotated[float | None, typer.Option(help="Longest time for one verdict; default: 120.")] = None,
    judge_cache: Annotated[Path | None, typer.Option(help="SQLite file that keeps the judge's verdicts.")] = None,
    compat: Annotated[
        Compat | None, typer.Option(help="qwenlong_l1: the rules of the released QwenLong-L1 code, holes included.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again where the output is there.")] = False,
) -> None:
    """Score responses with the rewards of training: rules, and a model as judge where one is named.

    
    hybridflow score --data rows.parquet --responses responses.jsonl --output verdicts.jsonl
    hybridflow score --data rows.jsonl --responses r.jsonl --output v.jsonl --judge-url http://127.0.0.1:30000/v1
    hybridflow score --data rows.jsonl --responses r.jsonl --output v.jsonl --verifier mine:score
    hybridflow score --data rows.jsonl --responses r.jsonl --output v.jsonl --config train.toml

    
    A verdict: {"index", "k", "status": "scored" | "unknown", "reward", "rule", "judge", "extracted", "why"}
      k       number of the response among those to the same row, from 0
      reward  0 to 1, the larger of rule and judge; null where unknown
      rule    the rule that looked at the answer
      judge   "yes" or "no"; null where it was not asked, or could not say
      parts   values by name, where several functions or named parts have some

    Interrupted, the same command goes on after the last whole line. Exit code: 0 all scored, 3 some unknown, 1 an
    error, 130 interrupted.
    """
    from hybridflow.observability.log import configure
    from hybridflow.tools.score import ScoreJob
    from hybridflow.tools.score_options import ScoreOptions, build_reward

    configure("score", level="WARNING")
    judge = {
        "endpoints": judge_url,
        "model": judge_model,
        "num_votes": judge_votes,
        "max_concurrency": judge_concurrency,
        "deadline_s": judge_deadline_s,
        "cache_path": None if judge_cache is None else str(judge_cache),
    }
    reward = build_reward(ScoreOptions(config or [], set_ or [], verifier or [], compat and compat.value, judge))
    job = ScoreJob(data, responses, output, reward, overwrite=overwrite)
    _write(job)


def _write(job: ScoreJob) -> None:
    """Write the verdicts and tell what came of them; exit code 3 where some are unknown."""
    from hybridflow.tools.score import write_verdicts

    with interruptible(GOES_ON, job.output), RowProgress() as progress:
        summary = write_verdicts(job, progress)
    for line in summary.lines(job.output):
        note(line)
    if summary.num_unknown:
        raise typer.Exit(EXIT_UNKNOWN)
