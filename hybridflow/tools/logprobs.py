"""`hybridflow logprobs`: log-probability of each next token of each row, in row order, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridflow.batching.microbatch import check_budget, plan_micro_batches
from hybridflow.config.sections import WorkerSection
from hybridflow.errors import ConfigError, DataError
from hybridflow.tools.session import open_policy
from hybridflow.tools.token_rows import InputSummary, TokenRows
from hybridflow.trainer.group import PolicyGroup, PolicySettings
from hybridflow.trainer.layout import check_model_layout
from hybridflow.types import TrainBatch, TrainSequence

MICRO_BATCHES_PER_CALL = 4
"""Micro-batches of each data parallel rank that are sent to the workers at once: what a crash can lose."""


@dataclass(frozen=True)
class LogprobsJob:
    """What is asked for."""

    model: Path
    input: Path
    output: Path
    worker: WorkerSection
    max_tokens: int | None = None
    """Tokens of a micro-batch; None: as `worker` says, or as many as the longest row has."""
    dtype: str = "float32"
    temperature: float = 1.0
    overwrite: bool = False


def write_logprobs(job: LogprobsJob, progress: Callable[[int, int], None]) -> int:
    """Appends to the output what is missing and returns the number of rows written.

    Line i is `{"logprobs": [...]}` of row i, one float per token but the first. `progress(done, total)` is called as
    rows are done. Raises DataError or ConfigError before any worker starts, and WorkerError if one dies.
    """
    check_model_layout(str(job.model), job.worker.layout)
    rows = _open_rows(job)
    summary = rows.check()
    worker = _within_budget(job, summary)
    done = _resume(job, summary)
    progress(done, summary.num_rows)
    if done == summary.num_rows:
        return 0
    logs = job.output.with_name(job.output.name + ".logs")
    settings = PolicySettings(worker, job.dtype, seed=0, optimizer=None)
    with open_policy(settings, job.model, logs) as group, job.output.open("a", encoding="utf-8") as file:
        written = 0
        for block in _blocks(rows, done, worker):
            for logprobs in _score(group, block, worker, job.temperature):
                file.write(json.dumps({"logprobs": logprobs}) + "\n")
            file.flush()
            written += len(block)
            progress(done + written, summary.num_rows)
    shutil.rmtree(logs, ignore_errors=True)
    return written


def _open_rows(job: LogprobsJob) -> TokenRows:
    from transformers import AutoTokenizer

    from megatron_ext.hf.config import read_hf_config

    if not any(job.model.glob("*.safetensors")):
        raise ConfigError(
            f"--model {job.model}: no safetensors there. Name a Hugging Face model directory with weights"
        )
    config = read_hf_config(job.model)
    tokenizer = _LateTokenizer(lambda: AutoTokenizer.from_pretrained(job.model, local_files_only=True))
    return TokenRows(job.input, tokenizer.encode, window=config.max_position_embeddings, vocab_size=config.vocab_size)


class _LateTokenizer:
    """Loads the tokenizer at the first text: rows of token ids need none, and some models come without."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._loaded: Any = None

    def encode(self, text: str) -> list[int]:
        if self._loaded is None:
            try:
                self._loaded = self._load()
            except (OSError, ValueError) as error:
                raise DataError(f'the model has no tokenizer, so rows of "text" cannot be read: {error}') from error
        return self._loaded(text)["input_ids"]


def _within_budget(job: LogprobsJob, summary: InputSummary) -> WorkerSection:
    """The workers' settings with a token budget that holds the longest row. ConfigError for one that does not."""
    if job.temperature <= 0:
        raise ConfigError(f"--temperature {job.temperature}: it must be positive")
    budget = max(job.worker.max_tokens_per_micro_batch, summary.longest)
    if job.max_tokens is not None:
        budget = job.max_tokens
        check_budget(summary.longest, budget)
    return job.worker.model_copy(update={"max_tokens_per_micro_batch": budget})


def _resume(job: LogprobsJob, summary: InputSummary) -> int:
    """How many rows the output has already, after a half-written line is cut off.

    Beside the output stands what it was made from, so that two jobs are never mixed. DataError if it would be.
    """
    marker = job.output.with_name(job.output.name + ".meta.json")
    meta = {
        "model": str(job.model.resolve()),
        "input_sha256": summary.sha256,
        "temperature": job.temperature,
        "dtype": job.dtype,
    }
    job.output.parent.mkdir(parents=True, exist_ok=True)
    if job.overwrite:
        job.output.unlink(missing_ok=True)
    done = 0
    if job.output.exists():
        if marker.exists():
            _check_same(json.loads(marker.read_text()), meta, job.output)
        done = _keep_whole_lines(job.output)
        if done > summary.num_rows:
            raise DataError(
                f"--output {job.output} has {done} rows, the input {summary.num_rows}. Remedy: name another output, or "
                "--overwrite"
            )
    marker.write_text(json.dumps(meta, indent=1) + "\n")
    return done


def _check_same(before: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    differing = [f"{key}: was {before.get(key)!r}, is {now[key]!r}" for key in now if before.get(key) != now[key]]
    if differing:
        raise DataError(
            f"--output {output} holds the results of another job ({'; '.join(differing)}). Remedy: name another "
            "output, or --overwrite"
        )


def _keep_whole_lines(path: Path) -> int:
    """Cuts off what follows the last line end, and counts the lines."""
    count, end = 0, 0
    with path.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        file.truncate(end)
    return count


def _blocks(rows: TokenRows, skip: int, worker: WorkerSection) -> Iterator[list[list[int]]]:
    """Rows after the first `skip`, as many at a time as give each rank some micro-batches to do."""
    limit = MICRO_BATCHES_PER_CALL * worker.max_tokens_per_micro_batch * worker.layout.dp
    block: list[list[int]] = []
    num_tokens = 0
    for number, token_ids in enumerate(rows):
        if number < skip:
            continue
        if block and num_tokens + len(token_ids) > limit:
            yield block
            block, num_tokens = [], 0
        block.append(token_ids)
        num_tokens += len(token_ids)
    if block:
        yield block


def _score(group: PolicyGroup, block: list[list[int]], worker: WorkerSection, temperature: float) -> list[list[float]]:
    sequences = [
        TrainSequence(
            sequence_id=str(number),
            prompt_token_ids=token_ids[:1],
            response_token_ids=token_ids[1:],
            loss_mask=[1] * (len(token_ids) - 1),
        )
        for number, token_ids in enumerate(block)
    ]
    plan = plan_micro_batches(
        [len(token_ids) for token_ids in block],
        num_dp_ranks=worker.layout.dp,
        max_tokens_per_micro_batch=worker.max_tokens_per_micro_batch,
    )
    return group.logprobs(TrainBatch(sequences=sequences, plan=plan), temperature)
