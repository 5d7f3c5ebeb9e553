"""Rows of a batch as units."""

from hybridflow.batching.microbatch import Unit, build_units
from hybridflow.types import TokenColumns, TrainSequence


def test_each_row_is_a_unit_of_one_branch() -> None:
    rows = [
        TrainSequence(
            sequence_id=f"s{number}",
            prompt_token_ids=[1] * prompt,
            response=TokenColumns(ids=[2] * response),
            loss_mask=[1] * response,
        )
        for number, (prompt, response) in enumerate([(3, 2), (1, 4)])
    ]
    units = build_units(rows, first_row=10)
    assert units == [Unit((10,), 3, (2,)), Unit((11,), 1, (4,))]
    assert [unit.num_tokens for unit in units] == [row.num_tokens for row in rows]
