"""Records of rollout: requests to engines, and what they decode.

Records of plain data make no cycles: Python's collector need not look at the thousands of them (`gc=False`).
"""

from __future__ import annotations

from typing import Literal

import msgspec

from hybridflow.types.tokens import NOT_PACKED, Packed, TokenColumns

FinishReason = Literal["stop", "length", "abort"]
NO_TOKENS = TokenColumns()
MemoryTag = Literal["kv_cache", "weights", "cuda_graph"]
"""Memory that an engine can release, in SGLang's words."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    alternatives: list[str] = []
    """Further gold answers: any of them is right."""
    question: str = ""
    """The question alone, without its document: all that a judge is told of the prompt."""
    row: str = ""
    """JSON {"prompt": [...], "extra_info": {...}}: what a verifier of the run takes of the row; else empty."""


class VersionRun(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Tokens that follow one another and were decoded by one version of the weights."""

    version: int
    num_tokens: int


class Partial(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a completion whose decoding was stopped, to be continued; it may have no token."""

    index: int
    tokens: TokenColumns
    versions: list[VersionRun]
    """Which version decoded which of the tokens, in order."""
    temperature: float | None = None
    """At which the tokens were drawn, and with which `top_p`; see `Completion`."""
    top_p: float = 1.0


class GroupRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks a rollout engine for `num_completions` completions of one prompt."""

    group_id: str
    prompt: Prompt
    num_completions: int
    done: list[int] = []
    """Members that are there from an earlier step, by index: not to be decoded."""
    partials: list[Partial] = []
    """Members that are continued; every other one that is not done starts again."""
    seed_id: str = ""
    """Id under which the prompt of a discarded group was first begun: seeds follow from it. Empty: `group_id`."""

    @property
    def indices(self) -> list[int]:
        """Members to decode, in order."""
        return [index for index in range(self.num_completions) if index not in self.done]

    def partial(self, index: int) -> Partial | None:
        """The partial completion of member `index`; None: nothing."""
        return next((partial for partial in self.partials if partial.index == index), None)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """A group, or what is left of it, in the hands of one engine."""

    request: GroupRequest
    attempt: int
    """Counts the leases of this group from 1; a completion of an earlier one is late."""
    indices: list[int]
    """Completions to decode, by index within the group."""
    num_aborts: dict[int, int] = {}
    """By index, where there were any: how often an engine aborted it by itself; it is drawn again by another seed."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How completions are drawn. Temperature 0 is greedy."""

    temperature: float
    max_new_tokens: int
    top_p: float = 1.0
    stop_token_ids: list[int] = []
    stop: list[str] = []
    returns_sampling_mask: bool = False
    """Completions say which tokens could have been drawn at each place."""
    returns_experts: bool = False
    """Completions say which experts computed their tokens and their prompt."""
    ignores_end: bool = False
    """Decode on after an end token, to `max_new_tokens`."""


class Completion(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One finished completion."""

    completion_id: str
    group_id: str
    prompt_id: str
    index: int
    """Position within the group, 0 .. num_completions - 1."""
    tokens: TokenColumns = NO_TOKENS
    text: str
    finish_reason: FinishReason
    policy_version: int
    """Version of the weights that decoded it, as the engine reported it; of a resumed one, its last tokens."""
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were already in the engine's cache."""
    temperature: float | None = None
    """At which its tokens were drawn, 0 where greedily; None: nothing was drawn."""
    top_p: float = 1.0
    """Share of the probability that its tokens were drawn from."""
    num_retractions: int = 0
    """How often the engine dropped it from its full KV pool and computed it again."""
    versions: list[VersionRun] = []
    """Which version decoded which tokens, in order; empty: `policy_version` decoded all."""
    resumed_tokens: int = 0
    """Tokens that an earlier step had decoded: they were input now."""
    prompt_experts: Packed = NOT_PACKED
    """Experts of all tokens of the prompt but the last, whose experts are those of the first token."""
    prompt_experts_of: str = ""
    """Id of the completion of the same group that has them instead."""

    @property
    def token_ids(self) -> list[int]:
        return self.tokens.ids

    @property
    def version_runs(self) -> list[VersionRun]:
        """`versions`, spelled out."""
        return self.versions or [VersionRun(self.policy_version, len(self.tokens))]


def without_numbers(completion: Completion) -> Completion:
    """The same without its text and its tokens."""
    return msgspec.structs.replace(completion, text="", tokens=NO_TOKENS)


class RolloutReport(msgspec.Struct, frozen=True, kw_only=True):
    """Totals of the generation of one step over all engines, in tokens where not said otherwise."""

    num_completions: int
    prompt_tokens: int
    """Sum over completions, so a prompt counts once per completion."""
    cached_tokens: int
    """Tokens among these found in the cache: computed once for the group, not again."""
    response_tokens: int
    num_retractions: int = 0
    """Completions dropped from a full KV pool and computed again; one may count several times."""
    resumed_tokens: int = 0
    """Tokens of earlier steps that were given to the engine with their prompt."""
    events: dict[str, int] = {}
    """Counts of events by name: leases and engines lost, completions dropped."""

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts, and of completions that were continued, that were computed."""
        return self.prompt_tokens + self.resumed_tokens - self.cached_tokens
