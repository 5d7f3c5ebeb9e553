"""Weights of real Megatron ranks, changed, arrive as SGLang's loaders would cut the whole tensors; bit for bit.

The expected shards are `cut_sglang` of tests/unit (SGLang's loaders, written again) on what the same ranks export under
Hugging Face names. Floats are compared as the integers that their bits are. Each layout runs with all ranks on one
machine (pieces are written into the destination's memory) and with one rank per machine (every piece is a message over
gloo). tests/stack_cpu hands the same buckets to a real SGLang.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, int32

from megatron_ext.hf.config import read_hf_config
from megatron_ext.parallel.layout import Layout
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.reshard_executor_programs import Target, reshard
from tests.unit.weights.reshard.oracles import Array, cut_sglang

CASES = {
    "TP2 PP2, tied": ("qwen3_tied", Layout(tp=2, pp=2), [Target(1), Target(2), Target(1, 1, 1), Target(2, 1, 1)], 96),
    "DP2, biases": ("qwen2", Layout(dp=2), [Target(2), Target(2, 1, 1)], 96),
    "EP2, experts": ("qwen3_moe", Layout(ep=2, dp=2), [Target(1), Target(2, 2), Target(1, 1, 1), Target(2, 1, 1)], 192),
}
"""Model, training layout, engines, KiB of a bucket: small for several rounds, and no parameter alone is larger."""


def bits(tensor: Tensor) -> Array:
    return tensor.view(int32).numpy().astype(np.int64)


@pytest.mark.parametrize("case", CASES)
def test_every_engine_rank_gets_the_bits_that_sglang_would_load(case: str, hf_dirs: dict[str, Path]) -> None:
    model, layout, targets, bucket_kib = CASES[case]
    config = read_hf_config(hf_dirs[model])
    ranks: list[dict[str, Any]] = run_ranks(layout, reshard, hf_dirs[model], targets, bucket_kib * 2**10)
    hf = {name: bits(tensor) for rank in ranks for name, tensor in rank["hf"].items()}
    for number, target in enumerate(targets):
        results = [rank["targets"][number] for rank in ranks]
        assert results[0]["num_rounds"] > 2
        for result in results:
            expected = cut_sglang(config, target.tp, target.ep, hf, result["tp_rank"])
            assert result["shard"].keys() == expected.keys()
            for name, tensor in result["shard"].items():
                np.testing.assert_array_equal(bits(tensor), expected[name], err_msg=f"{target} {name}")
            assert result["traffic"].buffer_bytes <= 2 * bucket_kib * 2**10
        check_bytes(results)


def check_bytes(results: list[dict[str, Any]]) -> None:
    """The bytes moved, by way, are what the plan said."""
    moved = sum((Counter(result["sent_bytes"]) for result in results), Counter())
    planned = Counter(
        {
            way: sum(getattr(result["traffic"], f"{way}_bytes") for result in results)
            for way in ("device", "nvlink", "network")
        }
    )
    assert moved == +planned
