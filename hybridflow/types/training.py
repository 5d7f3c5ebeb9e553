"""Records of a step and its training: collected and partial groups, batches, reports of updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from hybridflow.types.rewards import Group, ScoredCompletion
from hybridflow.types.rollout import Partial, Prompt, RolloutReport
from hybridflow.types.tokens import NOT_PACKED, Packed, TokenColumns

MeasuredRow = dict[str, list[float]]
"""By column, a value for each token of a row, computed by the trainer before the update: `old_logprobs`,
`ref_logprobs`, `entropy`."""


class TrainSequence(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a training batch: a prompt and a response of T tokens, with what the loss needs at these.

    SFT rows have neither advantage nor columns beside the tokens.
    """

    sequence_id: str
    group_id: str = ""
    """Id of the completions of one prompt; empty: it has no group but itself."""
    prompt_token_ids: list[int]
    response: TokenColumns
    loss_mask: list[int]
    """[T], 1 where the token counts in the loss."""
    advantage: float = 0.0
    """Advantage of every token of this response."""
    staleness: list[int] = []
    """[T] policy versions between the one that decoded a token and the present one; empty: all 0."""
    prompt_experts: Packed = NOT_PACKED
    """Experts of all tokens of the prompt but the last, see `TokenColumns.experts`; a group shares one object."""
    measured: MeasuredRow = {}
    """[T] each; what an objective asks for and is not here, the update computes."""

    @property
    def response_token_ids(self) -> list[int]:
        return self.response.ids

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.response)


class TrainBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one step and where each is computed.

    `plan[mini_batch][dp_rank][micro_batch]` lists row numbers. A mini-batch is what one optimizer step is made of; a
    micro-batch may be empty where a rank has no row.

    Log-probabilities are of the distribution that the tokens were drawn from: softmax(logits / temperature), over the
    tokens that top-p left in, which each row says.
    """

    sequences: list[TrainSequence]
    plan: list[list[list[list[int]]]]
    temperature: float
    """Above 0; 1 for demonstrations."""
    top_p: float = 1.0
    """Below 1 each row says of its tokens which could have been drawn."""

    @property
    def measured(self) -> set[str]:
        """Columns that the trainer has computed of every row."""
        return set.intersection(*(set(sequence.measured) for sequence in self.sequences)) if self.sequences else set()

    @property
    def num_ages(self) -> int:
        """1 + the largest staleness of a token."""
        return 1 + max((max(sequence.staleness, default=0) for sequence in self.sequences), default=0)


class UpdateMetric(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of one optimizer step, with what is needed to join it with those of others.

    `algorithms.reductions.Reduction` says what the rules mean.
    """

    value: float
    num_tokens: int
    """Tokens that it was taken over: its weight where it is a mean."""
    kind: Literal["mean", "max"] = "mean"
    with_max: bool = False
    of_each_update: bool = True


class UpdateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of one optimizer step; equal on all ranks."""

    loss: float
    grad_norm: float
    num_tokens: int
    """The denominator of the loss: the tokens that count in it, or sequences where these are averaged first."""
    num_response_tokens: int
    """Tokens of completions that count in the loss, whatever its denominator."""
    num_skipped: int
    """1 where the step was left out because the gradient or the loss was not finite."""
    epoch: int = 0
    """Pass over the batch, from 0."""
    mini_batch: int = 0
    metrics: dict[str, UpdateMetric] = {}
    """Metrics of the objective, by full name (`policy/kl`)."""


class WorkerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The device of one train worker, and what it holds there."""

    worker: str
    device: str
    """Equal for workers that share one; on a CPU the machine."""
    free_bytes: int
    """Free memory of the device, for whoever asks first."""
    on_device: dict[str, int]
    """Bytes by part: weights, gradients, optimizer."""
    on_host: dict[str, int]
    """Parts that have left the device, with the bytes that they will need there."""


class PartialGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Group that its step did not train on, as far as it was decoded and scored."""

    group_id: str
    prompt: Prompt
    num_completions: int
    members: list[ScoredCompletion]
    """Members that ended, with their verdicts, by index."""
    partials: list[Partial]
    """Beginnings of others, by index; none is empty."""
    seed_id: str = ""
    """As in GroupRequest."""

    @property
    def is_complete(self) -> bool:
        return len(self.members) == self.num_completions

    @property
    def num_tokens(self) -> int:
        """Tokens decoded so far."""
        ended = sum(member.num_tokens for member in self.members)
        return ended + sum(len(partial.tokens) for partial in self.partials)

    @property
    def oldest_version(self) -> int | None:
        """Oldest version of the weights that decoded any token of it; None where there is no token."""
        runs = [run for member in self.members for run in member.completion.version_runs]
        runs += [run for partial in self.partials for run in partial.versions]
        return min((run.version for run in runs), default=None)


@dataclass(frozen=True)
class StepCounts:
    """Counts of how a step began."""

    num_started: int
    """Groups that got their id in this step, those that took the place of others included."""
    num_resumed: int = 0
    """Carried groups of which something was kept."""
    num_discarded: int = 0
    """Carried groups of which nothing was kept, as a token was too old."""
    discarded_tokens: int = 0
    num_discarded_completions: int = 0
    """Completions that had any of these tokens."""
    num_short: int = 0
    """Groups that the step lacked when it ended: with dynamic sampling, after too many tries."""


@dataclass(frozen=True)
class Collected:
    """Groups in the order of their requests, members in index order, whatever the order of arrival."""

    groups: list[Group]
    report: RolloutReport
    counts: StepCounts
    carried: list[PartialGroup] = field(default_factory=list)
    """Groups that were begun and not needed."""


@dataclass(frozen=True)
class Measured:
    """Numbers measured of a step's rows before the update, and what follows from them."""

    rows: Mapping[str, MeasuredRow] = field(default_factory=dict)
    """By completion id."""
    kl_prices: Mapping[str, float] = field(default_factory=dict)
    """By completion id, what its distance from the reference costs: subtracted from its reward. Empty: nothing."""
    leaves_out_negative: bool = False
    """AEPO masks: completions of negative advantage are not learnt from."""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FilteredBatch:
    """`batch` is None where no group is left to learn from; `dropped` lists group ids by reason."""

    batch: TrainBatch | None
    num_groups: int
    dropped: dict[str, list[str]]
    overlong: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By id of each group, dropped ones included: [G] overlong penalties, 0 or below; empty where it is switched off.
    Filters saw the rewards without them, advantages come from the sums."""
    num_stale_tokens: int = 0
    """Response tokens of the kept groups that older policies decoded, masked ones included."""
    num_tokens: int = 0
    """All response tokens of the kept groups."""
    policy_version: int | None = None
    """From which staleness counts: the version that the step decoded with."""
    measured: Measured = Measured()
    """Values that the rows were made with."""
    masked_fraction: float = 0.0
    """Share of the completions that AEPO left out."""
