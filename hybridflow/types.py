"""Records that cross a process boundary.

All but ScoredCompletion are frozen msgspec structs: they travel over ZeroMQ as msgpack, over Ray by pickle, and into
JSONL, unchanged.

Identity. Every record carries ids that never change, so that a duplicate is recognised and a late message dropped:

    prompt_id      "train-000017"            data set name and row index
    group_id       "t00003-g0005"            stage and step, slot within the step
    completion_id  "t00003-g0005-c02"        group, index within the group

The four logprobs of a token are kept apart by name everywhere, all at the sampling temperature:
`rollout_logprobs` (the engine, while decoding), `old_logprobs` (the trainer, before the update), `logprobs` (the
trainer, in the update) and `ref_logprobs` (a reference policy).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort"]
MemoryTag = Literal["kv_cache", "weights", "cuda_graph"]
"""What an engine can release, in SGLang's words."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One data row, ready to be generated from.

    Example: Prompt(prompt_id="train-000017", token_ids=[5, 9, ...], data_source="synth_easy", ability="doc-qa",
    ground_truth="Therefore, the answer is yen.")
    """

    prompt_id: str
    token_ids: list[int]
    """Prompt tokens, chat template and generation prompt included."""
    data_source: str
    """Source name of the DocQA-RL schema; chooses the verifier together with `ability`."""
    ability: str
    """doc-qa, doc-math or doc-mc."""
    ground_truth: str
    """Gold answer as stored: a full sentence or the bare answer."""
    question: str = ""
    """The question alone, without its document: all that a judge is told of the prompt."""


class VersionRun(msgspec.Struct, frozen=True, array_like=True):
    """Tokens that follow one another and were decoded by one version of the weights."""

    version: int
    num_tokens: int


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a completion whose decoding was stopped, to be gone on with.

    `token_ids`, `rollout_logprobs` and the sum of `versions` have equal length; it may be 0.
    """

    index: int
    token_ids: list[int]
    rollout_logprobs: list[float]
    versions: list[VersionRun]
    support_lengths: list[int] = []
    support_ids: list[int] = []


class GroupRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks a rollout engine for `num_completions` completions of one prompt."""

    group_id: str
    prompt: Prompt
    num_completions: int
    done: list[int] = []
    """Members that are there from an earlier step, by index: not to be decoded."""
    partials: list[Partial] = []
    """Members that are gone on with; every other one that is not done starts anew."""

    @property
    def indices(self) -> list[int]:
        """Members to decode, in order."""
        return [index for index in range(self.num_completions) if index not in self.done]

    def partial(self, index: int) -> Partial | None:
        """What is there of member `index`; None: nothing."""
        return next((partial for partial in self.partials if partial.index == index), None)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A group, or what is left of it, in the hands of one engine."""

    request: GroupRequest
    attempt: int
    """Counts the leases of this group from 1; a completion of an earlier one is late."""
    indices: list[int]
    """Completions to decode, by index within the group."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How completions are drawn. Temperature 0 is greedy."""

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    stop_token_ids: list[int] = []
    stop: list[str] = []
    returns_support: bool = False
    """Completions say which tokens could have been drawn at each place."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """One finished completion.

    `token_ids` and `rollout_logprobs` have equal length T; the end token, where the policy wrote one, is included.
    """

    completion_id: str
    group_id: str
    prompt_id: str
    index: int
    """Position within the group, 0 .. num_completions - 1."""
    token_ids: list[int]
    rollout_logprobs: list[float]
    text: str
    finish_reason: FinishReason
    policy_version: int
    """Version of the weights that decoded it, as the engine reported it; of a resumed one, its last tokens."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were already in the engine's cache."""
    num_retractions: int = 0
    """How often the engine dropped it from its full KV pool and computed it again."""
    versions: list[VersionRun] = []
    """Which version decoded which tokens, in order; empty: `policy_version` decoded all."""
    resumed_tokens: int = 0
    """Of its tokens, those that an earlier step had decoded: they were input now."""
    support_lengths: list[int] = []
    """[T], how many tokens could have been drawn in place of each (top-p leaves some out); empty: any could."""
    support_ids: list[int] = []
    """All of these, place after place. `rollout_logprobs` are those of the renormalised distribution then."""

    @property
    def version_runs(self) -> list[VersionRun]:
        """`versions`, spelled out."""
        return self.versions or [VersionRun(self.policy_version, len(self.token_ids))]


class JudgeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the judge of one reward worker has done since that worker's process started; travels with its verdicts."""

    process: str
    """Tells a process that took over the id of a dead one from the same process later on."""
    number: int
    """Counts the reports of this process from 1."""
    counts: dict[str, float]
    """Totals by name: requests, answers, prompt_tokens, cost, failures/busy, breaker_opened, ..."""
    endpoints: dict[str, str]
    """State of the circuit breaker by URL: closed, half_open or open."""


class Scored(msgspec.Struct, frozen=True, kw_only=True, tag="scored"):
    """A verdict that was reached."""

    value: float
    """Reward in [0, 1]."""
    rule: str
    """Name of the rule that decided."""
    extracted: str
    """Answer found in the completion; empty where none was."""
    why: str
    predicted_form: str = ""
    """What was compared of the completion: normalised text, the number read, the letter; empty where nothing was."""
    gold_form: str = ""
    """What it was compared with."""
    judge: str = ""
    """Name of the model judge that was asked after the rule; empty where none was."""
    judge_vote: Literal["", "yes", "no"] = ""
    """What it said."""
    rule_value: float | None = None
    """What the rule alone gave, where a judge was asked after it; None: `value` is the rule's."""
    judge_report: JudgeReport | None = None


class Unknown(msgspec.Struct, frozen=True, kw_only=True, tag="unknown"):
    """No verdict could be reached. It is not a reward of 0: its completion leaves the statistics of its group."""

    why: str
    rule: str = ""
    """Name of the rule that had something to say before this became unknown, or that could not say it."""
    extracted: str = ""
    """Answer found in the completion, where that much is known."""
    judge_report: JudgeReport | None = None


Verdict = Scored | Unknown


class ScoreRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a verifier sees of one completion."""

    completion_id: str
    data_source: str
    ability: str
    ground_truth: str
    text: str
    question: str = ""


class ScoredCompletion:
    """A completion with the verdict it got and the worker that gave it.

    Args:
        completion: It, or what makes it. One that came over the wire stays packed, in a fifth of the memory, until its
            numbers are needed; those of a group that the filters leave out never are.
        head: The same without its numbers: their lists are empty. To be given, with the number of its tokens, where
            `completion` makes it.
    """

    __slots__ = ("_completion", "head", "num_tokens", "scored_by", "verdict")

    def __init__(
        self,
        *,
        completion: Completion | Callable[[], Completion],
        verdict: Verdict,
        scored_by: str,
        head: Completion | None = None,
        num_tokens: int | None = None,
    ) -> None:
        self._completion = completion
        self.head = head if head is not None else without_numbers(self.completion)
        self.num_tokens = num_tokens if num_tokens is not None else len(self.completion.token_ids)
        self.verdict = verdict
        self.scored_by = scored_by

    @property
    def completion(self) -> Completion:
        """With its numbers; where it is packed, made at each use."""
        return self._completion if isinstance(self._completion, Completion) else self._completion()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoredCompletion):
            return NotImplemented
        mine, theirs = ((it.verdict, it.scored_by, it.completion) for it in (self, other))
        return mine == theirs


def without_numbers(completion: Completion) -> Completion:
    """The same with all lists of one number per token empty."""
    return msgspec.structs.replace(completion, token_ids=[], rollout_logprobs=[], support_lengths=[], support_ids=[])


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """All completions of one prompt in one step, in index order."""

    group_id: str
    prompt: Prompt
    members: list[ScoredCompletion]


class TrainSequence(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a training batch: a prompt and a response, with what the loss needs at response tokens.

    T = len(response_token_ids). SFT rows have neither advantage nor logprobs.
    """

    sequence_id: str
    prompt_token_ids: list[int]
    response_token_ids: list[int]
    loss_mask: list[int]
    """[T], 1 where the token counts in the loss."""
    advantage: float = 0.0
    """Advantage of every token of this response."""
    rollout_logprobs: list[float] = []
    """[T], or empty."""
    staleness: list[int] = []
    """[T] policy versions between the one that decoded a token and the present one; empty: all 0."""
    support_lengths: list[int] = []
    """[T], or empty where any token could have been drawn; see `Completion`."""
    support_ids: list[int] = []

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.response_token_ids)


class TrainBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one optimizer step and where each is computed.

    `plan[dp_rank][micro_batch]` lists row numbers; a micro-batch may be empty where a rank has no row.
    """

    sequences: list[TrainSequence]
    plan: list[list[list[int]]]


class UpdateReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the optimizer steps on one batch did; equal on all ranks. Means are per token of the whole batch."""

    loss: float
    grad_norm: float
    num_tokens: int
    """Tokens that count in the loss."""
    num_skipped: int
    """Optimizer steps left out because the gradient or the loss was not finite."""
    entropy: float = math.nan
    clip_fraction_low: float = math.nan
    clip_fraction_high: float = math.nan
    num_fresh_tokens: int = 0
    """Of `num_tokens`, those that the present policy decoded: what the three below are about."""
    logprob_gap: float = math.nan
    """Mean |old_logprobs - rollout_logprobs|."""
    logprob_gap_max: float = math.nan
    """Largest |old_logprobs - rollout_logprobs|."""
    logprob_kl: float = math.nan
    """Mean estimate of KL(engine || trainer), see `algorithms.mismatch`."""


class WorkerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The device of one train worker, and what it holds there."""

    worker: str
    device: str
    """Equal for workers that share one; on a CPU the machine."""
    free_bytes: int
    """Of the device, for whoever asks first."""
    on_device: dict[str, int]
    """Bytes by part: weights, gradients, optimizer."""
    on_host: dict[str, int]
    """Parts that have left the device, with the bytes that they will need there."""


class RolloutReport(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of the generation of one step over all engines, in tokens where not said otherwise."""

    num_completions: int
    prompt_tokens: int
    """Sum over completions, so a prompt counts once per completion."""
    cached_tokens: int
    """Of these, found in the cache: computed once for the group, not again."""
    response_tokens: int
    num_retractions: int = 0
    """Completions dropped from a full KV pool and computed again; one may count several times."""
    resumed_tokens: int = 0
    """Tokens of earlier steps that were given to the engine with their prompt."""
    events: dict[str, int] = {}
    """What else happened, by name: leases and engines lost, completions dropped."""

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts, and of completions that were gone on with, that were computed."""
        return self.prompt_tokens + self.resumed_tokens - self.cached_tokens
