"""Routed experts stand at their tokens, and what cannot be replayed is refused before a layer runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybridflow.trainer.routing import build_routing_metrics
from megatron_ext.packing.micro_batch import PackInput, pack_sequences
from megatron_ext.packing.routed_experts import Disagreement, RoutedExperts

SHAPE = (2, 2)
DATA = bytes([0, 1, 2, 3, 3, 2, 1, 0])
"""Two tokens, two layers, two experts each."""


def row(num_tokens: int, data: bytes | None = DATA) -> PackInput:
    routed = None if data is None else RoutedExperts.of_bytes(data, SHAPE, 1, num_tokens)
    return PackInput(list(range(num_tokens)), 1, [1] * (num_tokens - 1), routed_experts=routed)


def test_rows_are_joined_and_what_nobody_chose_is_unknown() -> None:
    """Three tokens of which the last is unknown, two without any, and three of padding."""
    routed = pack_sequences([row(3), row(2, None)], pad_to_multiple=8).routed_experts
    assert routed is not None
    assert routed.known_T.tolist() == [True, True, *[False] * 6]
    assert routed.experts_TLK[:2].flatten().tolist() == list(DATA)
    assert routed.experts_TLK.dtype == torch.uint8
    assert pack_sequences([row(2, None)]).routed_experts is None


def test_two_bytes_are_little_endian() -> None:
    routed = RoutedExperts.of_bytes(b"\x2b\x01\x05\x00", (1, 2), 2, 1)
    assert routed.experts_TLK.tolist() == [[[299, 5]]]


@pytest.mark.parametrize(
    ("data", "bytes_each", "num_tokens"), [(DATA[:-1], 1, 3), (DATA, 1, 1), (DATA, 2, 0), (DATA, 4, 9)]
)
def test_bytes_of_other_tokens_are_refused(data: bytes, bytes_each: int, num_tokens: int) -> None:
    with pytest.raises(ValueError, match=f"{len(data)} bytes of routed experts are not those of at most {num_tokens}"):
        RoutedExperts.of_bytes(data, SHAPE, bytes_each, num_tokens)


def test_rows_that_do_not_fit_are_refused() -> None:
    other = RoutedExperts.of_bytes(DATA, (4, 1), 1, 3)
    with pytest.raises(ValueError, match="different shapes"):
        pack_sequences([row(3), PackInput([1, 2, 3], 1, [1], routed_experts=other)])
    with pytest.raises(ValueError, match="sequence 1: routed experts of 3 tokens, there are 4"):
        pack_sequences([row(3), PackInput([1, 2, 3, 4], 1, [1], routed_experts=row(3).routed_experts)])


CONFIG: Any = SimpleNamespace(
    num_moe_experts=4, moe_router_topk=2, moe_layer_freq=1, num_layers=2, sequence_parallel=False
)
TOPOLOGY: Any = SimpleNamespace(device=torch.device("cpu"), tp_rank=0, tp_size=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_moe_experts": 3}, "routed experts are numbered 0 to 3, the model has 3 experts"),
        ({"num_layers": 3}, r"routed experts of \(2, 2\) \(layers, experts of a token\), the model has \(3, 2\)"),
        ({"moe_router_topk": 1}, r"the model has \(2, 1\)"),
    ],
)
def test_experts_that_the_model_has_not_are_refused(changes: dict[str, int], message: str) -> None:
    from megatron_ext.model.routing_replay import Routing  # Megatron takes seconds

    routed = RoutedExperts.of_bytes(DATA, SHAPE, 1, 3)
    with pytest.raises(ValueError, match=message):
        Routing(routed, SimpleNamespace(**(vars(CONFIG) | changes)), 3, TOPOLOGY)  # type: ignore[arg-type]


def test_a_layer_weighs_the_given_experts_by_its_own_scores() -> None:
    """At layer 1 token 0 is given 2 and 3 where the router wants 0 and 1; token 1 is given 1 and 0; token 2 is free."""
    from megatron_ext.model.routing_replay import Routing

    routing = Routing(RoutedExperts.of_bytes(DATA, SHAPE, 1, 3), CONFIG, 3, TOPOLOGY)
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 3, requires_grad=True)

    def topk(scores: torch.Tensor, k: int, num_groups: None, group_topk: None) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.topk(scores, k, dim=1)

    probs, experts = routing.at(1).get_replay_topk(scores, 2, None, None, topk)  # type: ignore[arg-type]
    assert experts.tolist() == [[2, 3], [1, 0], [0, 1]]
    assert probs.tolist() == [[2.0, 1.0], [3.0, 4.0], [4.0, 3.0]]
    probs[0].sum().backward()
    assert scores.grad is not None and scores.grad[0].tolist() == [0, 0, 1, 1]
    assert (routing.num_differing[1].item(), routing.differs_T.tolist()) == (1, [True, False, False])
    with pytest.raises(ValueError, match=r"layer 1 routes \(2, 2\) .* came for \(3, 2\)"):
        routing.at(1).get_replay_topk(scores[:2], 2, None, None, topk)  # type: ignore[arg-type]


def test_shares_of_choices_and_of_tokens() -> None:
    metrics = build_routing_metrics(
        Disagreement(num_choices=40, num_differing_choices=3, num_tokens=20, num_differing_tokens=2)
    )
    shares = {name: (metric.value, metric.num_tokens) for name, metric in metrics.items()}
    assert shares == {"routing/choices_differing": (0.075, 40), "routing/tokens_differing": (0.1, 20)}
    assert build_routing_metrics(None) == build_routing_metrics(Disagreement(0, 0, 0, 0)) == {}
