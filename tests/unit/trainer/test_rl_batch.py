"""The inputs of the trainer's loss for each token that was sampled."""

from __future__ import annotations

import math

import pytest
import torch

from hybridflow.algorithms.objective import COMPUTED, build_objective
from hybridflow.algorithms.spec import policy_spec
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.errors import ProtocolError
from hybridflow.loop.batch import build_train_sequences
from hybridflow.trainer.batch import pack_rank
from hybridflow.trainer.policy_update import LossCallback
from hybridflow.types import (
    Group,
    Packed,
    Ragged,
    TokenColumns,
    TrainBatch,
    TrainSequence,
    VersionRun,
)
from megatron_ext.attention.context_split import cut_micro_batch
from megatron_ext.packing.micro_batch import MicroBatch, PackInput, pack_sequences
from tests.builders import build_completion, build_prompt, build_request, build_scored

ENTROPY_N = torch.ones(3)
REQUEST = build_request(build_prompt(token_ids=[1, 2]), 3)


def row(index: int, versions: list[VersionRun], version: int) -> TrainSequence:
    """The training row of a completion of three tokens, when policy 7 trains on it."""
    completion = build_completion(
        REQUEST,
        index,
        version,
        tokens=TokenColumns(ids=[5, 6, 7], rollout_logprobs=[-0.5, -0.25, -0.125]),
        versions=versions,
    )
    group = Group(group_id="g", prompt=REQUEST.prompt, members=[build_scored(completion)])
    (sequence,) = build_train_sequences([group], {"g": [2.0]}, 7)
    return sequence


def callback(*, is_on_policy: bool, num_ages: int = 1) -> LossCallback:
    objective = build_objective(policy_spec(AlgorithmSection(clip_low=0.2, clip_high=0.2)), num_ages=num_ages)
    return LossCallback(objective, is_on_policy)


def at_age(name: str, age: int) -> str:
    return f"{name}/staleness_{age}" if age else name


def test_a_correction_without_the_engines_logprobs_is_refused() -> None:
    """In every pass: a later one measures no mismatch, but is corrected."""
    section = AlgorithmSection(rollout_correction={"token_weight": "tis"})  # type: ignore[arg-type]
    columns = sorted({*build_objective(policy_spec(section), is_first_pass=False).columns} - COMPUTED)
    bare = TrainSequence(sequence_id="g/3", prompt_token_ids=[1], response=TokenColumns(ids=[5]), loss_mask=[1])
    with pytest.raises(ProtocolError, match="needs 'rollout_logprobs' of each token, and row g/3 has none"):
        pack_rank(TrainBatch(sequences=[bare], plan=[[[[0]]]], temperature=1.0), 0, columns)


def packed(*rows: TrainSequence) -> MicroBatch:
    batch = TrainBatch(sequences=list(rows), plan=[[[list(range(len(rows)))]]], temperature=1.0)
    (micro_batch,) = pack_rank(batch, 0, sorted({*callback(is_on_policy=True).objective.columns} - COMPUTED))
    return micro_batch


def test_each_token_brings_the_engines_logprob_and_its_age() -> None:
    fresh = row(0, [], 7)
    resumed = row(1, [VersionRun(5, 1), VersionRun(7, 2)], 7)
    surplus = row(2, [], 6)
    assert (fresh.staleness, resumed.staleness, surplus.staleness) == ([], [2, 0, 0], [1, 1, 1])
    inputs = packed(fresh, resumed, surplus).loss_inputs
    assert inputs["rollout_logprobs"].tolist() == [-0.5, -0.25, -0.125] * 3
    assert inputs["staleness"].tolist() == [0, 0, 0, 2, 0, 0, 1, 1, 1]


def test_the_gap_is_measured_by_staleness() -> None:
    """Older tokens differ by what was learnt since, not by the engine alone: it is told apart."""
    micro_batch = packed(row(0, [VersionRun(5, 1), VersionRun(7, 2)], 7))
    old_N = torch.tensor([-1.5, -0.5, -0.125])
    micro_batch.loss_inputs["old_logprobs"] = old_N
    loss = callback(is_on_policy=False, num_ages=3)
    sums = loss(old_N, ENTROPY_N, micro_batch)
    assert [sums.metrics[f"tokens/{age}"].item() for age in range(3)] == [2, 0, 1]
    assert [sums.metrics[at_age("policy/logprob_gap", age)].item() for age in range(3)] == [0.25, 0.0, 1.0]
    assert [sums.maxima[at_age("policy/logprob_gap_max", age)].item() for age in range(3)] == [0.25, 0.0, 1.0]
    assert sums.metrics["policy/logprob_kl/staleness_2"].item() == pytest.approx(math.exp(-1.0) - 1 + 1.0)


def test_the_first_optimizer_step_needs_no_old_logprobs() -> None:
    """They are those of the pass itself: ratio 1, and the gradient of -A per token."""
    micro_batch = packed(row(0, [], 7))
    logprobs_N = torch.tensor([-0.5, -0.5, -0.25], requires_grad=True)
    sums = callback(is_on_policy=True)(logprobs_N, ENTROPY_N, micro_batch)
    sums.loss.backward()
    assert logprobs_N.grad is not None
    assert logprobs_N.grad.tolist() == [-2.0, -2.0, -2.0]
    ratio = (sums.metrics["policy/ratio_mean"], sums.metrics["policy/kl"], sums.maxima["policy/ratio_max"])
    assert ratio == (3.0, 0.0, 1.0)
    assert sums.metrics["policy/logprob_gap"] == 0.375


def test_ratio_and_kl_of_a_later_optimizer_step() -> None:
    """new / old = 2, 1 and 1/2: mean 7/6; k3 of KL(old || new) is r - 1 - log r = 1 - log 2, 0, -1/2 + log 2."""
    micro_batch = packed(row(0, [], 7))
    old_N = torch.tensor([-1.0, -1.0, -1.0])
    micro_batch.loss_inputs["old_logprobs"] = old_N
    new_N = old_N + torch.tensor([math.log(2), 0.0, -math.log(2)])
    sums = callback(is_on_policy=False)(new_N, ENTROPY_N, micro_batch)
    assert sums.metrics["policy/ratio_mean"].item() == pytest.approx(3.5)
    assert sums.maxima["policy/ratio_max"].item() == pytest.approx(2.0)
    assert sums.metrics["policy/kl"].item() == pytest.approx(0.5, abs=1e-6)


def test_the_sampling_mask_of_counted_tokens_alone_is_packed() -> None:
    narrow = TrainSequence(
        sequence_id="s",
        prompt_token_ids=[1, 2],
        response=TokenColumns(
            ids=[5, 6, 7], rollout_logprobs=[-1.0, -1.0, -1.0], sampling_mask=Ragged([2, 1, 3], [5, 9, 6, 7, 8, 4])
        ),
        loss_mask=[1, 0, 1],
    )
    mask = packed(row(0, [], 7), narrow).ragged_inputs["sampling_mask"]
    assert mask.lengths_N.tolist() == [0, 0, 0, 2, 3]  # of the first row any token could be drawn
    assert mask.values_M.tolist() == [5, 9, 7, 8, 4]
    assert packed(row(0, [], 7)).ragged_inputs == {}


def test_context_parallel_ranks_get_the_sampling_mask_of_their_positions() -> None:
    lengths, ids = [1, 2, 3, 1, 2], [10, 20, 21, 30, 31, 32, 40, 50, 51]
    whole = pack_sequences([PackInput(list(range(6)), 1, [1] * 5, ragged_inputs={"sampling_mask": (lengths, ids)})])
    of_rank = []
    for rank in range(2):
        part = cut_micro_batch(whole, 2, rank)
        mask = part.micro_batch.ragged_inputs["sampling_mask"]
        pieces = mask.values_M.split(mask.lengths_N.tolist())
        of_rank += list(zip(part.predicted_R.tolist(), [piece.tolist() for piece in pieces], strict=True))
    assert sorted(of_rank) == [(0, [10]), (1, [20, 21]), (2, [30, 31, 32]), (3, [40]), (4, [50, 51])]


def test_a_sampling_mask_that_does_not_fit_its_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling_mask has 1 lengths for 2 predicted tokens, and 3 values"):
        pack_sequences([PackInput([1, 2, 3], 1, [1, 1], ragged_inputs={"sampling_mask": ([2], [1, 2, 3])})])


def routed(prompt: bytes, response: bytes) -> TrainSequence:
    """Two tokens after a prompt of three, with one layer of two experts per token."""
    tokens = TokenColumns(ids=[8, 9], rollout_logprobs=[-1.0, -2.0], experts=Packed((1, 2), 1, response))
    return TrainSequence(
        sequence_id="s",
        prompt_token_ids=[5, 6, 7],
        response=tokens,
        loss_mask=[1, 1],
        prompt_experts=Packed((1, 2), 1, prompt),
    )


def test_experts_stand_at_all_tokens_but_the_last() -> None:
    """The first response token has those of the pass over the last prompt token. A row without any knows none."""
    bare = TrainSequence(sequence_id="b", prompt_token_ids=[1], response=TokenColumns(ids=[2]), loss_mask=[1])
    batch = TrainBatch(sequences=[routed(b"abcd", b"efgh"), bare], plan=[[[[0, 1]], [[]]]], temperature=1.0)
    (micro_batch,) = pack_rank(batch, 0)
    assert micro_batch.routed_experts is not None
    assert bytes(micro_batch.routed_experts.experts_TLK[:4].flatten().tolist()) == b"abcdefgh"
    assert micro_batch.routed_experts.known_T.tolist() == [True] * 4 + [False] * 3
    (nothing,) = pack_rank(batch, 1)
    assert nothing.routed_experts is None


def test_experts_go_with_their_tokens_to_context_parallel_ranks() -> None:
    """The rank order of five tokens in chunks of two: 0 1 and padding, 2 3 and 4 with padding."""
    batch = TrainBatch(sequences=[routed(b"abcd", b"efgh")], plan=[[[[0]]]], temperature=1.0)
    (micro_batch,) = pack_rank(batch, 0)
    parts = [cut_micro_batch(micro_batch, 2, rank).micro_batch for rank in range(2)]
    experts = [part.routed_experts for part in parts]
    assert [part.tokens_T.tolist() for part in parts] == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert [one.known_T.tolist() for one in experts if one] == [[True, True, False, False], [True, True, False, False]]
    assert [bytes(one.experts_TLK[one.known_T].flatten().tolist()) for one in experts if one] == [b"abcd", b"efgh"]


def test_experts_of_a_part_of_the_prompt_are_refused() -> None:
    batch = TrainBatch(sequences=[routed(b"ab", b"efgh")], plan=[[[[0]]]], temperature=1.0)
    with pytest.raises(ProtocolError, match="row s has a prompt of 3 tokens and the experts of 1 of them"):
        pack_rank(batch, 0)
