"""Routed experts are replayed exactly: by every router, on every layout, and in backward where layers run again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.parallel.layout import Layout
from tests.dist_cpu import rank_programs, routing_programs, transformers_reference
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.routing_programs import LAYERS, MODEL
from tests.dist_cpu.tiny_models import load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

LAYOUTS = {
    "one": Layout(),
    "tp2_sp": Layout(tp=2, sequence_parallel=True),
    "cp2_ep2": Layout(cp=2, ep=2),
    "pp2_ep2": Layout(pp=2, dp=2, ep=2),
    "pp2_vpp2_recompute": Layout(pp=2, vpp=2, recompute="full"),
    "tp2_sp_pp2_selective": Layout(tp=2, sequence_parallel=True, pp=2, recompute="selective"),
}
PARALLEL = [name for name in LAYOUTS if name != "one"]
Replay = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def replay(hf_dirs: dict[str, Path]) -> Replay:
    """Results of `routing_programs.replay` by layout name; each layout is started once."""
    return functools.cache(lambda name: run_ranks(LAYOUTS[name], routing_programs.replay, hf_dirs[MODEL]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_routers_take_the_given_experts_at_every_layer_and_token(replay: Replay, layout: str) -> None:
    ranks = replay(layout)
    assert [rank["compared"][1] for rank in ranks] == [[]] * len(ranks)
    known = sum(len(row.token_ids) - 1 for row in routing_programs.routed_rows() if row.routed_experts is not None)
    whole = known * len(LAYERS) * LAYOUTS[layout].dp
    assert whole * 0.97 < sum(rank["compared"][0] for rank in ranks) <= whole  # all but tokens that are also a last one


@pytest.mark.parametrize("layout", PARALLEL)
def test_two_steps_equal_one_process(replay: Replay, layout: str) -> None:
    """A layer that met the experts of another micro-batch or rank, forward or backward, would compute another step."""
    expected = replay("one")[0]
    weights: dict[str, Tensor] = {}
    for rank in replay(layout):
        for step, expected_step in zip(rank["steps"], expected["steps"], strict=True):
            assert step.loss == pytest.approx(expected_step.loss, rel=1e-5)
            assert step.grad_norm == pytest.approx(expected_step.grad_norm, rel=1e-5)
            assert step.routing == expected_step.routing
        weights |= rank["weights"]
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_disagreement_counts_known_tokens(replay: Replay) -> None:
    """Experts drawn at random are those of the router for 1 in 56 choices of 3 among 8."""
    routing = replay("one")[0]["steps"][0].routing
    known = sum(len(row.token_ids) - 1 for row in routing_programs.routed_rows() if row.routed_experts is not None)
    assert (routing.num_tokens, routing.num_choices) == (known, known * len(LAYERS))
    assert routing.num_differing_choices / routing.num_choices == pytest.approx(55 / 56, abs=0.02)
    assert routing.num_differing_choices / routing.num_choices < routing.num_differing_tokens / routing.num_tokens


def forced_logprobs(hf_dir: Path) -> tuple[torch.nn.Module, list[Tensor]]:
    """Log-probabilities of each row by transformers with the given experts in place of its own choice."""
    model = load_model(hf_dir)
    given: dict[int, Tensor] = {}

    def force(layer: int, gate: Any) -> None:
        def forward(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logits = hidden.reshape(-1, gate.hidden_dim) @ gate.weight.T
            probs = logits.softmax(-1)
            chosen = probs.topk(gate.top_k).indices
            if layer in given:
                chosen = torch.cat([given[layer], chosen[len(given[layer]) :]])
            return logits, probs.gather(1, chosen), chosen

        gate.forward = forward

    for layer in LAYERS:
        force(layer, model.model.layers[layer].mlp.gate)
    logprobs = []
    for row in routing_programs.routed_rows():
        given.clear()
        if row.routed_experts is not None:
            experts_TLK = routing_programs.experts_of_row(row)
            given |= {layer: experts_TLK[:, place] for place, layer in enumerate(LAYERS)}
        logprobs.append(transformers_reference.row_logprobs(model, row, rank_programs.TEMPERATURE))
    return model, logprobs


def test_values_and_gradients_are_those_of_transformers_with_these_experts(
    replay: Replay, hf_dirs: dict[str, Path]
) -> None:
    model, rows = forced_logprobs(hf_dirs[MODEL])
    one = replay("one")[0]
    found = torch.cat([output[0] for output in one["logprobs"]])
    torch.testing.assert_close(found, torch.cat(rows).detach(), rtol=0, atol=1e-4)
    own = torch.cat(transformers_reference.compute_logprobs(hf_dirs[MODEL], rank_programs.TEMPERATURE))
    assert (found - own).abs().mean() > 0.05, "other experts must matter"
    loss = rank_programs.mean_weighted_loss(rows)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
    assert one["steps"][0].loss == pytest.approx(loss.item(), rel=1e-5)
    assert one["steps"][0].grad_norm == pytest.approx(norm.item(), rel=1e-5)
