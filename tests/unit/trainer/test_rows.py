"""Rows and groups as a loss of whole sequences is told of them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from hybridflow.algorithms.aggregations import TokenMean
from hybridflow.algorithms.objective import Objective, TermValue, TokenBatch
from hybridflow.trainer.batch import pack_rank
from hybridflow.trainer.policy_update import LossCallback
from hybridflow.types import TokenColumns, TrainBatch, TrainSequence
from megatron_ext.attention.context_split import cut_micro_batch


def row(group: str, mask: list[int]) -> TrainSequence:
    response = TokenColumns(ids=[3] * len(mask), rollout_logprobs=[-1.0] * len(mask))
    return TrainSequence(
        sequence_id="", group_id=group, prompt_token_ids=[1, 2], response=response, loss_mask=mask, advantage=1.0
    )


BATCH = TrainBatch(
    sequences=[row("b", [1, 1, 1]), row("a", [1, 0, 1]), row("b", [1]), row("", [0, 0])],
    plan=[[[[1, 2, 3], [0]]]],
    temperature=1.0,
)


def test_rows_have_their_place_in_the_batch_and_groups_a_number_over_all_of_it() -> None:
    first, second = (micro_batch.rows for micro_batch in pack_rank(BATCH, 0))
    assert first.row_ids_R.tolist() == [1, 2, 3] and second.row_ids_R.tolist() == [0]
    assert first.group_ids_R.tolist() == [1, 0, 2] and second.group_ids_R.tolist() == [0]
    assert first.row_N.tolist() == [0, 0, 1] and first.count_R.tolist() == [2, 1, 0]


def test_sums_and_means_over_rows_and_their_gradient() -> None:
    rows = pack_rank(BATCH, 0)[0].rows
    values_N = torch.tensor([1.0, 3.0, 5.0], requires_grad=True)
    assert rows.sum(values_N).tolist() == [4.0, 5.0, 0.0]
    mean_R = rows.mean(values_N)
    assert mean_R.tolist() == [2.0, 5.0, 0.0]
    assert rows.spread(mean_R).tolist() == [2.0, 2.0, 5.0]
    mean_R.square().sum().backward()
    assert values_N.grad is not None
    assert values_N.grad.tolist() == [2.0, 2.0, 10.0]  # 2 * mean / count


def test_a_term_of_the_objective_sees_the_rows() -> None:
    seen: list[list[int]] = []

    class Term:
        columns = ()
        metrics: ClassVar[dict[str, Any]] = {}

        def __call__(self, tokens: TokenBatch) -> TermValue:
            assert tokens.rows is not None
            seen.append(tokens.rows.group_ids_R.tolist())
            return TermValue(tokens.rows.spread(tokens.rows.mean(tokens.logprobs_N)))

    callback = LossCallback(Objective(terms=(Term(),), aggregation=TokenMean()))
    sums = callback(torch.tensor([-1.0, -3.0, -5.0]), None, pack_rank(BATCH, 0)[0])
    assert seen == [[1, 0, 2]]
    assert (sums.loss.item(), sums.num_tokens) == (-9.0, 3)


def test_context_parallel_parts_keep_all_rows_and_add_up_to_them() -> None:
    """Each knows how many positions a row has on all ranks; the parts' sums are those of the whole."""
    whole = pack_rank(BATCH, 0)[0]
    values_N = torch.tensor([1.0, 3.0, 5.0])
    total_R = torch.zeros(3)
    for rank in range(2):
        cut = cut_micro_batch(whole, 2, rank)
        assert cut.micro_batch.rows.count_R.tolist() == [2, 1, 0]
        total_R += cut.micro_batch.rows.sum(values_N[cut.predicted_R])
    assert total_R.tolist() == [4.0, 5.0, 0.0]
