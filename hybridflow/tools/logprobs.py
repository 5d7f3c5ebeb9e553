"""`hybridflow logprobs`: log-probability of each next token of each row, in row order, resumable."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridflow.config.sections import WorkerSection
from hybridflow.data.chat_encoding import encode_chat, encode_text
from hybridflow.data.chat_template import Message
from hybridflow.errors import ConfigError, TrainerError
from hybridflow.loop.batch import plan_batch
from hybridflow.policy.load import load_tokenizer
from hybridflow.runtime.open_policy import open_policy
from hybridflow.tools.options import LayoutRequest, check_threads
from hybridflow.tools.output_file import OutputFile, fingerprint
from hybridflow.tools.progress import RowProgress
from hybridflow.tools.token_rows import InputSummary, TokenRows
from hybridflow.trainer.group import PolicyGroup, PolicySettings
from hybridflow.trainer.layout import check_model_layout, check_model_weights, check_vocabulary, read_model
from hybridflow.types import TokenColumns, TrainSequence
from megatron_ext.hf.config import HFConfig

MICRO_BATCHES_PER_CALL = 4
"""Micro-batches of each data parallel rank that are sent to the workers at once: what a crash can lose."""
GO_ON = "the same command goes on where it stopped"


@dataclass(frozen=True)
class LogprobsJob:
    """The job that a command line asks for."""

    model: Path
    input: Path
    output: Path
    layout: LayoutRequest = field(default_factory=LayoutRequest)
    num_threads: int = 1
    max_tokens: int | None = None
    """Tokens of a micro-batch; None: as a worker's default says, or as many as the longest row has."""
    dtype: str = "float32"
    fp32_head: bool = False
    temperature: float = 1.0
    overwrite: bool = False


@dataclass(frozen=True)
class LogprobsPlan:
    """A job that was found possible."""

    job: LogprobsJob
    rows: TokenRows
    summary: InputSummary
    worker: WorkerSection
    output: OutputFile

    def describe(self) -> dict[str, Any]:
        """The settings that decide the numbers, up to rounding."""
        return {
            "model": str(self.job.model.resolve()),
            "model_files": fingerprint(self.job.model),
            "input_sha256": self.summary.sha256,
            "temperature": self.job.temperature,
            "dtype": self.job.dtype,
            "fp32_head": self.job.fp32_head,
        }


def write_logprobs(job: LogprobsJob, progress: RowProgress) -> int:
    """Appends to the output what is missing and returns the number of rows written.

    Line i is `{"logprobs": [...]}` of row i, one float per token but the first. Raises DataError or ConfigError, with
    nothing written, before any worker starts, and WorkerError if one dies.
    """
    plan = plan_job(job)
    total = plan.summary.num_rows
    done, moved = plan.output.resume(plan.describe(), overwrite=job.overwrite)
    if moved is not None:
        progress.note(f"{job.output} held something else, which is kept as {moved}")
    progress(done, total)
    if done >= total:
        return 0
    logs = job.output.with_name(job.output.name + ".logs")
    settings = PolicySettings(plan.worker, job.dtype, seed=0, optimizer=None, after_death=GO_ON)
    written = 0
    with open_policy(settings, job.model, logs) as group, job.output.open("a", encoding="utf-8") as file:
        for block in score_rows(group, plan, skip=done):
            file.writelines(json.dumps({"logprobs": logprobs}, allow_nan=False) + "\n" for logprobs in block)
            file.flush()
            written += len(block)
            progress(done + written, total)
    shutil.rmtree(logs, ignore_errors=True)
    return written


def plan_job(job: LogprobsJob) -> LogprobsPlan:
    """Reads model headers and every row, and writes nothing. ConfigError or DataError for what cannot be done."""
    named = f"--model {job.model}"
    output = OutputFile(job.output, input=job.input)
    check_threads(job.num_threads)
    if not (math.isfinite(job.temperature) and job.temperature > 0):
        raise ConfigError(f"--temperature {job.temperature}: it must be a positive number; give 1 for none")
    hf_config = read_model(job.model, named)
    layout = job.layout.resolve(hf_config)
    check_model_layout(job.model, layout, named, "the layout")
    check_model_weights(job.model, hf_config, named)
    rows = _open_rows(job, hf_config)
    summary = rows.check()
    worker = WorkerSection(
        layout=layout,
        num_threads=job.num_threads,
        fp32_head=job.fp32_head,
        max_tokens_per_micro_batch=_budget(job, summary),
    )
    return LogprobsPlan(job, rows, summary, worker, output)


def _open_rows(job: LogprobsJob, hf_config: HFConfig) -> TokenRows:
    tokenizer = _LateTokenizer(job.model, hf_config)
    return TokenRows(
        job.input,
        tokenizer.encode,
        window=hf_config.window_tokens,
        vocab_size=hf_config.vocab_size,
        encode_chat=tokenizer.encode_chat,
    )


class _LateTokenizer:
    """Loads the tokenizer at the first text: rows of token ids need none, and some models come without."""

    def __init__(self, hf_dir: Path, hf_config: HFConfig) -> None:
        self._hf_dir, self._hf_config = hf_dir, hf_config
        self._loaded: Any = None

    def encode(self, text: str) -> list[int]:
        """Token ids as the tokenizer gives them by default, with the special tokens that it adds."""
        return encode_text(self._load(), text)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The same of a conversation, up to where the model would answer."""
        return encode_chat(self._load(), messages)

    def _load(self) -> Any:
        if self._loaded is None:
            self._loaded = load_tokenizer(self._hf_dir, f"--model {self._hf_dir}")
            check_vocabulary(self._loaded, self._hf_config, f"--model {self._hf_dir}")
        return self._loaded


def _budget(job: LogprobsJob, summary: InputSummary) -> int:
    """Tokens of a micro-batch. ConfigError for a --max-tokens that does not hold the longest row."""
    if job.max_tokens is None:
        return max(WorkerSection().max_tokens_per_micro_batch, summary.longest)
    if job.max_tokens < summary.longest:
        raise ConfigError(
            f"--max-tokens {job.max_tokens}: the longest row has {summary.longest} tokens, and no row is split. "
            f"Give {summary.longest} or more; --cp spreads every row over several workers"
        )
    return job.max_tokens


def score_rows(group: PolicyGroup, plan: LogprobsPlan, skip: int = 0) -> Iterator[list[list[float]]]:
    """Logprobs of the rows after the first `skip`, some rows at a time, in their order.

    Raises TrainerError for one that is not finite.
    """
    number = skip
    for block in _blocks(plan.rows, skip, plan.worker):
        scored = _score(group, block, plan.worker, plan.job.temperature)
        for logprobs in scored:
            position = next((i for i, value in enumerate(logprobs) if not math.isfinite(value)), None)
            if position is not None:
                raise TrainerError(
                    f"row {number}: the logprob of token {position + 1} is {logprobs[position]}. The weights of "
                    f"{plan.job.model} hold values that are not finite, or overflow in {plan.job.dtype}"
                )
            number += 1
        yield scored


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
            response=TokenColumns(ids=token_ids[1:]),
            loss_mask=[1] * (len(token_ids) - 1),
        )
        for number, token_ids in enumerate(block)
    ]
    return group.logprobs(plan_batch(sequences, [len(sequences)], worker, temperature=temperature))
