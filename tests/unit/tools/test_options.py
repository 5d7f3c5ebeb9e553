"""Keys that a user leaves open in a layout are chosen so that it fits the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridflow.tools.options import LayoutRequest
from hybridflow.trainer.layout import check_model_layout, read_model


@pytest.mark.parametrize(
    ("request_", "dp", "sequence_parallel"),
    [
        (LayoutRequest(), 1, False),
        (LayoutRequest(ep=2), 2, False),
        (LayoutRequest(tp=2), 1, True),
        (LayoutRequest(tp=2, ep=2), 1, True),
        (LayoutRequest(tp=2, ep=4), 2, True),
        (LayoutRequest(cp=2, ep=2, etp=2), 2, False),
        (LayoutRequest(tp=2, pp=2, etp=2), 1, True),
        (LayoutRequest(dp=4, ep=2), 4, False),
    ],
)
def test_experts_get_the_ranks_that_they_need(
    models: dict[str, Path], request_: LayoutRequest, dp: int, sequence_parallel: bool
) -> None:
    layout = request_.resolve(read_model(models["qwen3_moe"]))
    assert (layout.dp, layout.sequence_parallel) == (dp, sequence_parallel)
    check_model_layout(models["qwen3_moe"], layout)


def test_a_dense_model_is_cut_as_asked(models: dict[str, Path]) -> None:
    layout = LayoutRequest(tp=2, pp=2, cp=2).resolve(read_model(models["llama"]))
    assert (layout.tp, layout.pp, layout.cp, layout.dp, layout.sequence_parallel) == (2, 2, 2, 1, False)
