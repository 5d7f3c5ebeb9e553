"""`hybridflow generate`: completions of each prompt, in the order of the prompts, resumable."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.data.chat_encoding import encode_chat, encode_text
from hybridflow.errors import ConfigError
from hybridflow.observability.reporter import Notes
from hybridflow.policy.load import load_tokenizer
from hybridflow.rollout.driver.opening import RolloutSettings
from hybridflow.rollout.engine.arguments import check_engine_layout
from hybridflow.rollout.engine.model_folder import check_engine_model
from hybridflow.runtime.open_engines import Engines, open_engines
from hybridflow.tools.output_file import OutputFile, fingerprint
from hybridflow.tools.progress import RowProgress
from hybridflow.tools.token_rows import InputSummary, TokenRows
from hybridflow.trainer.layout import check_model_weights, check_vocabulary, read_model
from hybridflow.types import Completion, GroupRequest, Prompt, SamplingParams
from megatron_ext.hf.config import HFConfig, read_json_config

COMPLETIONS_PER_BLOCK = 512
"""Completions per engine that are asked for at once. A row is written when it and all before it are complete."""
START_TIMEOUT_S = 600.0
"""A large model is read from a slow disk in this time."""


@dataclass(frozen=True)
class GenerateJob:
    """The job that a command line asks for."""

    model: Path
    prompts: Path
    output: Path
    num_completions: int = 1
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=1.0, max_new_tokens=512))
    seed: int = 0
    engines: int = 1
    tp: int = 1
    num_threads: int = 1
    dtype: str = "float32"
    kv_cache_tokens: int | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class GeneratePlan:
    """A job that was found possible."""

    job: GenerateJob
    rows: TokenRows
    summary: InputSummary
    section: RolloutSection
    output: OutputFile

    def describe(self) -> dict[str, Any]:
        """The settings that decide the completions, up to rounding."""
        sampling = self.job.sampling
        return {
            "model": str(self.job.model.resolve()),
            "model_files": fingerprint(self.job.model),
            "prompts_sha256": self.summary.sha256,
            "num_completions": self.job.num_completions,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "stop": sampling.stop,
            "seed": self.job.seed,
            "dtype": self.job.dtype,
        }


def write_completions(job: GenerateJob, progress: RowProgress) -> int:
    """Appends to the output what is missing and returns the number of rows written.

    Line i is `{"row": i, "completions": [{"text", "token_ids", "logprobs", "finish_reason"}, ...]}`; `logprobs` are at
    the sampling temperature. A completion follows from seed, row and its place in the row, so a job that was cut off
    goes on as it would have. Raises DataError or ConfigError, with nothing written, before any engine starts, and
    RolloutError for engines that do not stay alive.
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
    settings = RolloutSettings(plan.section, job.dtype, job.seed, initial_version=0)
    written = 0
    with (
        open_engines(settings, job.model, logs, Notes(progress.note)) as engines,
        job.output.open("a", encoding="utf-8", buffering=1) as file,  # so that a crash loses no line
    ):
        requests = islice(build_requests(plan), done, None)
        while block := list(islice(requests, max(1, COMPLETIONS_PER_BLOCK * job.engines // job.num_completions))):
            for line in in_order(engines, block, job.sampling):
                file.write(line)
                written += 1
                progress(done + written, total)
    shutil.rmtree(logs, ignore_errors=True)
    return written


def plan_job(job: GenerateJob) -> GeneratePlan:
    """Reads model headers and every row, and writes nothing. ConfigError or DataError for what cannot be done."""
    named = f"--model {job.model}"
    output = OutputFile(job.output, prompts=job.prompts)
    _check_numbers(job)
    hf_config = read_model(job.model, named)
    check_engine_model(hf_config, read_json_config(job.model), named)
    check_engine_layout(hf_config.num_heads, job.tp, f"--tp {job.tp}")
    check_model_weights(job.model, hf_config, named)
    tokenizer = load_tokenizer(job.model, named)
    check_vocabulary(tokenizer, hf_config, named)
    rows = _open_rows(job, tokenizer, hf_config)
    summary = rows.check()
    longest = summary.longest + job.sampling.max_new_tokens
    if longest > hf_config.window_tokens:
        raise ConfigError(
            f"--max-new-tokens {job.sampling.max_new_tokens}: with the longest prompt, {summary.longest} tokens, that "
            f"is {longest}, above the model's window of {hf_config.window_tokens} (config.json). Lower it, or shorten "
            f"the prompts"
        )
    if job.kv_cache_tokens is not None and job.kv_cache_tokens < longest:
        raise ConfigError(
            f"--kv-cache-tokens {job.kv_cache_tokens}: the longest prompt, {summary.longest} tokens, and "
            f"--max-new-tokens {job.sampling.max_new_tokens} take {longest}. Give {longest} or more"
        )
    section = RolloutSection(
        num_engines=job.engines,
        tp_size=job.tp,
        num_threads=job.num_threads,
        context_tokens=longest,
        kv_cache_tokens=job.kv_cache_tokens,
        start_timeout_s=START_TIMEOUT_S,
    )
    return GeneratePlan(job, rows, summary, section, output)


def _check_numbers(job: GenerateJob) -> None:
    """ConfigError naming the option, its value and the rule."""
    counts = {
        "--num-completions": job.num_completions,
        "--engines": job.engines,
        "--tp": job.tp,
        "--num-threads": job.num_threads,
        "--max-new-tokens": job.sampling.max_new_tokens,
        "--kv-cache-tokens": 1 if job.kv_cache_tokens is None else job.kv_cache_tokens,
    }
    for option, value in counts.items():
        if value < 1:
            raise ConfigError(f"{option} {value}: it must be at least 1")
    temperature, top_p = job.sampling.temperature, job.sampling.top_p
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"--temperature {temperature}: it must be a number of at least 0; 0 is greedy")
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p {top_p}: it must be above 0 and at most 1; give 1 for none")
    if not 0 <= job.seed < 2**63:
        raise ConfigError(f"--seed {job.seed}: it must be at least 0, and have 63 bits at most")
    if not all(job.sampling.stop):
        raise ConfigError('--stop "": an empty text would end every completion; leave it out')


def _open_rows(job: GenerateJob, tokenizer: Any, hf_config: HFConfig) -> TokenRows:
    return TokenRows(
        job.prompts,
        lambda text: encode_text(tokenizer, text),
        window=hf_config.window_tokens,
        vocab_size=hf_config.vocab_size,
        named="--prompts",
        encode_chat=lambda messages: encode_chat(tokenizer, messages),
    )


def build_requests(plan: GeneratePlan) -> Iterator[GroupRequest]:
    for number, token_ids in enumerate(plan.rows):
        name = f"row-{number:08d}"
        prompt = Prompt(prompt_id=name, token_ids=token_ids, data_source="", ability="", ground_truth="")
        yield GroupRequest(group_id=name, prompt=prompt, num_completions=plan.job.num_completions)


def in_order(engines: Engines, block: list[GroupRequest], sampling: SamplingParams) -> Iterator[str]:
    """Lines of the block's rows in their order, each as soon as it and all before it are complete."""
    found: dict[str, list[Completion]] = {request.group_id: [] for request in block}
    waiting = iter(block)
    current = next(waiting, None)
    for completion in engines.generate(block, sampling):
        found[completion.group_id].append(completion)
        while current is not None and len(found[current.group_id]) == current.num_completions:
            yield _line(current, sorted(found.pop(current.group_id), key=lambda one: one.index))
            current = next(waiting, None)


def _line(request: GroupRequest, completions: list[Completion]) -> str:
    rows = [
        {
            "text": completion.text,
            "token_ids": completion.token_ids,
            "logprobs": completion.tokens.rollout_logprobs,
            "finish_reason": completion.finish_reason,
        }
        for completion in completions
    ]
    number = int(request.group_id.removeprefix("row-"))
    return json.dumps({"row": number, "completions": rows}, allow_nan=False) + "\n"
