"""Before the first step, and before that of each phase: do trainer and engines compute the same model?

Each engine writes a text from a prompt of the run and tells the log-probability of every token, the trainer computes
them of the same tokens. Where the rope scaling stretches the window and prompts of the run may reach beyond the native
one, a second prompt does. A difference beyond rounding means that the two read the model differently: the run would
train on tokens of another policy, and end as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from hybridflow.config.sections import Config
from hybridflow.errors import ModelMismatchError
from hybridflow.loop.batch import plan_batch
from hybridflow.loop.collect import Collector
from hybridflow.loop.step import plan_all
from hybridflow.protocols import LogprobTrainer
from hybridflow.recording.recorder import Recorder
from hybridflow.runtime.colocation import Colocation
from hybridflow.trainer.layout import read_model
from hybridflow.types import (
    Completion,
    Group,
    GroupRequest,
    Prompt,
    SamplingParams,
    TokenColumns,
    TrainBatch,
    TrainSequence,
)
from megatron_ext.hf.config import HFConfig

NEW_TOKENS = 16
BEYOND_TOKENS = 32
"""So far beyond the native window the second prompt reaches, where there is room."""
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}
"""Mean |trainer - engine| per token that rounding explains, by dtype, where train.max_gate_gap is not set."""
PLAIN, STRETCHED, LONGEST = "p", "s", "l"
"""First letter of a group's id: within the native window, beyond it, or as long as a phase allows."""


@dataclass(frozen=True)
class GateResult:
    """Result of the comparison of trainer and engines."""

    gap: float
    """Largest of the texts' means of |trainer - engine| per token."""
    num_tokens: int


def check_engines(
    config: Config,
    step: int,
    *,
    prompts: Sequence[Prompt],
    collector: Collector,
    trainer: LogprobTrainer,
    colocation: Colocation,
    recorder: Recorder,
) -> None:
    """Raises ModelMismatchError unless trainer and engines give the tokens of a text the same log-probabilities.

    `config` is that of the phase which begins after `step`. `prompts` are all of the run, of training and evaluation.
    """
    started = time.monotonic()
    hf_config = read_model(config.model.path)
    with recorder.phase("gate"):
        requests = gate_requests(prompts, config, hf_config, step)
        groups = collector.decode(plan_all(requests), gate_sampling(config)).groups
        with colocation.trainer_present():
            logprobs = trainer.logprobs(build_gate_batch(groups, config))
        result = check_gate(groups, logprobs, config, hf_config)
    longest = max(len(group.prompt.token_ids) for group in groups)
    recorder.note(
        f"trainer and engines compute the same model: {result.gap:.1e} per token on {result.num_tokens} tokens behind "
        f"prompts of up to {longest:,} ({time.monotonic() - started:.1f} s)"
    )


def gate_requests(prompts: Sequence[Prompt], config: Config, hf_config: HFConfig, step: int = 0) -> list[GroupRequest]:
    """For each engine a prompt, and one beyond the native window where prompts of the run may be there.

    Where the run has phases the second one is as long as the longest prompt that the present one may have.

    None of them begins as a prompt of the run does, so that engines' caches hold for the first step what they would
    have held without.
    """
    firsts = {prompt.token_ids[0] for prompt in prompts}
    tokens = prompts[0].token_ids
    start = next((at for at, token in enumerate(tokens) if token not in firsts), 0)
    text = tokens[start:] + tokens[:start]
    native, longest = hf_config.native_window_tokens, config.data.max_prompt_tokens
    texts = {PLAIN: text[:longest]}
    if config.curriculum.phases:
        texts[LONGEST] = (text * (longest // len(text) + 1))[:longest]
    elif hf_config.rope_scaling is not None and longest + config.rollout.max_new_tokens > native:
        length = min(longest, native + BEYOND_TOKENS)
        texts[STRETCHED] = (text * (length // len(text) + 1))[:length]
    return [
        GroupRequest(
            group_id=f"{kind}{step:05d}-g{engine:04d}",
            prompt=msgspec.structs.replace(prompts[0], token_ids=token_ids),
            num_completions=1,
        )
        for kind, token_ids in texts.items()
        for engine in range(config.rollout.num_engines)
    ]


def gate_sampling(config: Config) -> SamplingParams:
    """As the run samples, from the whole vocabulary, and on behind an end token: a short answer would show little."""
    return SamplingParams(
        temperature=config.rollout.temperature,
        max_new_tokens=min(NEW_TOKENS, config.rollout.max_new_tokens),
        ignores_end=True,
    )


def build_gate_batch(groups: Sequence[Group], config: Config) -> TrainBatch:
    """A row per completion, in the order of the groups."""
    completions = [_completion(group) for group in groups]
    sequences = [
        TrainSequence(
            sequence_id=completion.completion_id,
            prompt_token_ids=group.prompt.token_ids,
            response=TokenColumns(ids=completion.tokens.ids),
            loss_mask=[1] * len(completion.tokens),
        )
        for group, completion in zip(groups, completions, strict=True)
    ]
    return plan_batch(sequences, [len(sequences)], config.train, temperature=gate_sampling(config).temperature)


def check_gate(
    groups: Sequence[Group], logprobs: Sequence[Sequence[float]], config: Config, hf_config: HFConfig
) -> GateResult:
    """Holds the trainer's `logprobs`, a list per group, against the engines'.

    Raises ModelMismatchError, with the likely key, if one text's mean gap is above the bound, or is no number.
    """
    bound = gate_bound(config)
    gaps: dict[str, float] = {}
    num_tokens = 0
    for group, of_trainer in zip(groups, logprobs, strict=True):
        of_engine = _completion(group).tokens.rollout_logprobs
        num_tokens += len(of_engine)
        pairs = zip(of_trainer, of_engine, strict=True)
        gap = sum(abs(mine - theirs) for mine, theirs in pairs) / len(of_engine) if of_engine else math.nan
        kind = group.group_id[0]
        gaps[kind] = max(gaps.get(kind, 0.0), gap if math.isfinite(gap) else math.inf)
    if max(gaps.values()) > bound:
        longest, native = config.data.max_prompt_tokens, hf_config.native_window_tokens
        is_long = gaps[PLAIN] <= bound
        is_far = is_long and (STRETCHED in gaps or longest > native)
        begin = "before the first step" + (" of the phase" if config.curriculum.phases else "")
        where = "beyond the model's native window" if is_far else begin
        where = f"of {longest} tokens, as long as the phase allows" if is_long and not is_far else where
        raise ModelMismatchError(
            f"trainer and engines compute different models: on one text {where} their log-probabilities differ by "
            f"{max(gaps.values()):.3g} per token on average, above train.max_gate_gap = {bound:g}. Likely cause: "
            f"{likely_cause(config, hf_config, is_far=is_far)}"
        )
    return GateResult(max(gaps.values()), num_tokens)


def gate_bound(config: Config) -> float:
    return BOUNDS[config.model.dtype] if config.train.max_gate_gap is None else config.train.max_gate_gap


def likely_cause(config: Config, hf_config: HFConfig, *, is_far: bool) -> str:
    """The key to look at first: what is set for the engines alone, then what is rarest in the model's config.json."""
    if config.rollout.sglang:
        return f"rollout.sglang sets {', '.join(sorted(config.rollout.sglang))} for the engines alone; remove them"
    path = f"{config.model.path}/config.json"
    if hf_config.rope_scaling is not None:
        return f"rope_scaling (rope_parameters) in {path}{'' if is_far else '; without it, the weights'}"
    if hf_config.moe is not None:
        return f"num_experts, norm_topk_prob and what else {path} says of experts"
    if config.model.dtype == "bfloat16":
        return (
            'model.dtype = "bfloat16": try the run with model.dtype = "float32"; if that passes, raise '
            "train.max_gate_gap to what this model's rounding needs"
        )
    return f"a key in {path} that this version of SGLang reads otherwise than transformers"


def check_later_gap(gap: float, config: Config, step: int) -> None:
    """Raises ModelMismatchError where a step's mean gap, over tokens of the present weights, is above the limit."""
    limit = config.train.max_logprob_gap
    if gap > limit:
        raise ModelMismatchError(
            f"step {step}: the trainer's log-probabilities of the tokens it trained on differ from the engines' by "
            f"{gap:.3g} per token on average, above train.max_logprob_gap = {limit:g}. The gate before the first step "
            "passed, so weights or precision have changed since: see policy/logprob_gap in metrics.jsonl, and go on "
            "from an earlier checkpoint"
        )


def _completion(group: Group) -> Completion:
    return group.members[0].completion
