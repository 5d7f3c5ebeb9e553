"""The gate before the first step, and what it says where trainer and engines differ."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.sections import Config
from hybridflow.errors import ModelMismatchError
from hybridflow.loop.gate import build_gate_batch, check_gate, gate_bound, gate_requests, gate_sampling
from hybridflow.types import Group, GroupRequest, Prompt
from megatron_ext.hf.config import Experts, HFConfig
from megatron_ext.hf.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from tests.builders import build_group, build_prompt
from tests.unit.loop.fakes import build_config

PLAIN = HFConfig(
    model_type="qwen3",
    num_layers=1,
    hidden_size=4,
    ffn_hidden_size=4,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    vocab_size=50,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    tied_embeddings=True,
    qk_norm=True,
    qkv_bias=False,
)
YARN = YarnScaling(4.0, 100, 1.1, 32.0, 1.0, True)


def prompt(*token_ids: int) -> Prompt:
    return build_prompt("train-0", token_ids=list(token_ids))


def requests_of(config: Config, scaling: RopeScaling | None = None) -> list[GroupRequest]:
    return gate_requests([prompt(1, 7, 8, 9), prompt(7, 3)], config, dataclasses.replace(PLAIN, rope_scaling=scaling))


def test_each_engine_gets_a_text_that_begins_as_no_prompt_does(tmp_path: Path) -> None:
    """1 and 7 begin prompts, so the text is turned to begin with 8: no cache of the first step is filled by it."""
    config = build_config(tmp_path, rollout__num_engines=2)
    found = requests_of(config)
    assert [request.prompt.token_ids for request in found] == [[8, 9, 1, 7]] * 2
    assert [request.group_id for request in found] == ["p00000-g0000", "p00000-g0001"]
    sampling = gate_sampling(config)
    assert (sampling.temperature, sampling.top_p, sampling.returns_sampling_mask) == (
        config.rollout.temperature,
        1.0,
        False,
    )


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (YARN, 132),  # 32 beyond the 100 of before
        (Llama3Scaling(4.0, 1.0, 4.0, 120), 152),
        (LinearScaling(4.0), 160),  # 512 / 4 + 32
        (dataclasses.replace(YARN, original_tokens=150), 160),  # as far as prompts of the run go
        (dataclasses.replace(YARN, original_tokens=176), None),  # 160 + 16 do not go beyond
        (None, None),
    ],
)
def test_a_second_text_goes_beyond_the_native_window_where_the_run_may(
    tmp_path: Path, scaling: RopeScaling | None, length: int | None
) -> None:
    config = build_config(tmp_path, data__max_prompt_tokens=160, rollout__max_new_tokens=16)
    lengths = [len(request.prompt.token_ids) for request in requests_of(config, scaling)]
    assert lengths == [4] if length is None else lengths == [4, length]


def groups_of(config: Config, scaling: RopeScaling | None = None) -> list[Group]:
    """Every response has tokens 5 and 6, at -0.5 and -0.25."""
    return [build_group(request, [1.0]) for request in requests_of(config, scaling)]


def test_rows_hold_prompt_and_response(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    batch = build_gate_batch(groups_of(config), config)
    (row,) = batch.sequences
    assert (row.prompt_token_ids, row.response_token_ids, row.loss_mask) == ([8, 9, 1, 7], [5, 6], [1, 1])
    assert sorted(number for rank in batch.plan[0] for rows in rank for number in rows) == [0]


def test_the_mean_difference_per_token_passes_up_to_the_bound(tmp_path: Path) -> None:
    """|0.001| and |0.0005| are 0.00075 per token."""
    config = build_config(tmp_path)
    result = check_gate(groups_of(config), [[-0.501, -0.2495]], config, PLAIN)
    assert result.gap == pytest.approx(0.00075) and result.num_tokens == 2
    bf16 = build_config(tmp_path, model__dtype="bfloat16")
    assert (gate_bound(config), gate_bound(bf16)) == (1e-3, 0.1)
    assert gate_bound(build_config(tmp_path, train__max_gate_gap=0.5)) == 0.5


MOE = dataclasses.replace(PLAIN, moe=Experts(2, 1, 4, False, (True,)))


@pytest.mark.parametrize(
    ("changes", "hf_config", "far", "said"),
    [
        ({}, PLAIN, False, "a key in .*config.json that this version of SGLang reads otherwise"),
        ({}, dataclasses.replace(PLAIN, rope_scaling=YARN), False, "before the first step .* rope_scaling"),
        ({}, dataclasses.replace(PLAIN, rope_scaling=YARN), True, "beyond the model's native window .* rope_scaling"),
        ({}, MOE, False, "num_experts, norm_topk_prob"),
        ({"model__dtype": "bfloat16"}, PLAIN, False, 'model.dtype = "bfloat16"'),
        (
            {"rollout__sglang": {"attention_backend": "x"}},
            MOE,
            False,
            "rollout.sglang sets attention_backend for the engines alone",
        ),
    ],
)
def test_the_likely_key_is_named(
    tmp_path: Path, changes: dict[str, Any], hf_config: HFConfig, far: bool, said: str
) -> None:
    config = build_config(tmp_path, data__max_prompt_tokens=160, **changes)
    groups = groups_of(config, hf_config.rope_scaling)
    wrong, right = [-1.5, -0.25], [-0.5, -0.25]
    logprobs = [right if far and group.group_id.startswith("p") else wrong for group in groups]
    with pytest.raises(ModelMismatchError, match=f"(?s){said}"):
        check_gate(groups, logprobs, config, hf_config)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_does_not_pass(tmp_path: Path, value: float) -> None:
    config = build_config(tmp_path)
    with pytest.raises(ModelMismatchError, match="differ by inf"):
        check_gate(groups_of(config), [[-0.5, value]], config, PLAIN)
