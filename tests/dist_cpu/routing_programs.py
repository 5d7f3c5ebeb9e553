"""Programs of the tests of routing replay: rows whose experts follow from token and position, at random."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.packing.micro_batch import PackInput
from megatron_ext.packing.routed_experts import RoutedExperts
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from megatron_ext.policy import MegatronPolicy
from tests.dist_cpu.rank_programs import OPTIONS, TEMPERATURE, exported, pack_rows, train
from tests.dist_cpu.tiny_models import EXPERTS, make_rows

MODEL = "qwen3_moe_mixed"
LAYERS = (0, 2, 3)
"""Layers that have experts."""
NUM_EXPERTS, PER_TOKEN = EXPERTS["num_experts"], EXPERTS["num_experts_per_tok"]


def experts_of(token: int, position: int, layer: int) -> Tensor:
    """int64 [K], those that "the engine" chose."""
    generator = torch.Generator().manual_seed(1 + 7919 * token + 131 * position + layer)
    return torch.randperm(NUM_EXPERTS, generator=generator)[:PER_TOKEN]


def experts_of_row(row: PackInput) -> Tensor:
    """int64 [T - 1, L, K]: no engine has computed the last token."""
    tokens = enumerate(row.token_ids[:-1])
    return torch.stack([torch.stack([experts_of(token, at, layer) for layer in LAYERS]) for at, token in tokens])


def routed_rows() -> list[PackInput]:
    """The shared rows with routed experts, but for the third, which has none."""
    rows = make_rows()
    for number, row in enumerate(rows):
        if number != 2:
            data = experts_of_row(row).to(torch.uint8).numpy().tobytes()
            routed = RoutedExperts.of_bytes(data, (len(LAYERS), PER_TOKEN), 1, len(row.token_ids))
            rows[number] = dataclasses.replace(row, routed_experts=routed)
    return rows


class Watch:
    """Compares what Megatron's routers decide with the experts that were given, token by token."""

    def __init__(self, policy: MegatronPolicy, rows: list[PackInput]) -> None:
        self.num_compared = 0
        self.wrong: list[tuple[int, int, int]] = []
        self._topology = policy.topology
        self._shortest = min(len(row.token_ids) for row in rows) // policy.topology.cp_size
        self._known = {
            (token, at) for row in rows if row.routed_experts is not None for at, token in enumerate(row.token_ids[:-1])
        }
        self._known -= {
            (token, at)
            for row in rows
            for at, token in enumerate(row.token_ids)
            if row.routed_experts is None or at == len(row.token_ids) - 1
        }
        for chunk in policy.chunks:
            chunk.register_forward_pre_hook(self._begin)
            for layer in chunk.decoder.layers:
                if hasattr(layer.mlp, "router"):
                    layer.mlp.router.register_forward_hook(self._compare(layer.layer_number - 1))

    def _begin(self, chunk: Any, args: tuple[Tensor, ...]) -> None:
        places = list(zip(args[0].tolist(), args[1].tolist(), strict=True))
        self._places = (
            places if len(places) >= self._shortest else []
        )  # shorter: what a virtual pipeline is filled with

    def _compare(self, layer: int) -> Any:
        def compare(router: Any, args: Any, output: tuple[Tensor, Tensor]) -> None:
            chosen_TE = output[1]
            first = self._topology.tp_rank * len(chosen_TE) if len(chosen_TE) < len(self._places) else 0
            for (token, at), is_chosen_E in zip(self._places[first:], chosen_TE, strict=False):
                if (token, at) in self._known:
                    self.num_compared += 1
                    if sorted(experts_of(token, at, layer).tolist()) != is_chosen_E.nonzero()[:, 0].tolist():
                        self.wrong.append((token, at, layer))

        return compare


def replay(topology: Topology, layout: Layout, hf_dir: Path) -> dict[str, Any]:
    """Decisions of routers, log-probabilities of all rows, two steps and the weights after them."""
    policy = MegatronPolicy(str(hf_dir), layout, topology, dtype=torch.float32, optimizer=OPTIONS, routing_replay=True)
    rows = routed_rows()
    watch = Watch(policy, rows)
    logprobs = policy.logprobs(pack_rows(rows, 3, layout), temperature=TEMPERATURE)
    compared = watch.num_compared, list(watch.wrong)
    size = topology.dp_size
    cuts = [0, *(1 + number * (len(rows) - 2) // size for number in range(size - 1)), len(rows)]
    mine = rows[cuts[topology.dp_rank] : cuts[topology.dp_rank + 1]]
    steps = train(policy, pack_rows(mine, 2, layout), 2)
    return {"compared": compared, "logprobs": logprobs, "steps": steps, "weights": exported(policy)}
