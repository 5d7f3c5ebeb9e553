"""Frequencies and log-probabilities of every position encoding are those of transformers, beyond the old window too."""

from __future__ import annotations

import json
import shutil
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatron_ext.hf.config import UnsupportedModelError, read_hf_config
from megatron_ext.hf.rope import read_rope, rotary_frequencies
from megatron_ext.model.transformer_config import attention_softmax_scale
from megatron_ext.packing.micro_batch import PackInput, pack_sequences
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from tests.dist_cpu import rank_programs
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import VOCAB_SIZE, load_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": YARN,
    "yarn_old_key": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn_betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0, "factor": 3.0},
    "yarn_attention_factor": {**YARN, "attention_factor": 1.5},
    "yarn_mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn_one_mscale": {**YARN, "mscale": 0.7},
    "yarn_not_truncated": {**YARN, "truncate": False},
    "yarn_window_of_the_model": {"rope_type": "yarn", "factor": 2.0},
}
THETA = 10000.0


def make_config(changes: dict[str, Any], head_dim: int = 128, window: int = 256) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=window,
        rope_parameters={"rope_theta": THETA, **changes},
    )


@pytest.mark.parametrize("head_dim", [16, 128])
@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "default"])
def test_frequencies_and_attention_factor_are_those_of_transformers(name: str, head_dim: int) -> None:
    config = make_config(SCALINGS[name], head_dim)
    theta, scaling = read_rope(config)
    rope_type = SCALINGS[name].get("rope_type", "yarn")
    expected, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    assert scaling is not None
    torch.testing.assert_close(rotary_frequencies(head_dim, theta, scaling), expected, rtol=1e-7, atol=0)
    assert scaling.attention_factor == pytest.approx(factor, rel=1e-12)


def test_plain_frequencies_by_hand() -> None:
    """Base 10000 and a head of 4: one pair turns a radian per position, the other a hundredth."""
    torch.testing.assert_close(rotary_frequencies(4, 10000.0, None), torch.tensor([1.0, 0.01]))


def test_the_recipe_of_qwen_by_hand() -> None:
    """YaRN x 4 on a window of 32768, base 1e6, head 128: the quickest wave is kept, the slowest divided by 4.

    The attention factor is 0.1 ln 4 + 1 = 1.1386, which scores have twice.
    """
    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6}
    config = types.SimpleNamespace(rope_parameters=parameters, max_position_embeddings=32768)
    theta, scaling = read_rope(config)
    assert scaling is not None
    frequencies, plain = rotary_frequencies(128, theta, scaling), rotary_frequencies(128, theta, None)
    assert frequencies[0] == plain[0] == 1.0
    assert frequencies[-1].item() == pytest.approx(plain[-1].item() / 4)
    assert scaling.attention_factor == pytest.approx(1.138629436)
    assert scaling.window_tokens(config.max_position_embeddings) == 131072


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_both_keys_of_a_config_file_are_read(hf_dirs: dict[str, Path], tmp_path: Path, key: str) -> None:
    hf_dir = with_rope(hf_dirs["qwen2"], tmp_path / "model", key, YARN)
    hf_config = read_hf_config(hf_dir)
    assert hf_config.rope_theta == THETA
    assert hf_config.rope_scaling == read_rope(AutoConfig.from_pretrained(hf_dir))[1]
    assert hf_config.rope_scaling is not None and hf_config.rope_scaling.attention_factor > 1.1
    assert hf_config.window_tokens == 256
    # 1 / sqrt(16) times the square of 0.1 ln 4 + 1
    assert attention_softmax_scale(hf_config) == pytest.approx(0.25 * 1.138629436**2)


def with_rope(hf_dir: Path, out_dir: Path, key: str, parameters: dict[str, Any]) -> Path:
    """A copy of a model whose config has these rope parameters, as transformers 5 or an older one writes them."""
    shutil.copytree(hf_dir, out_dir)
    config = json.loads((hf_dir / "config.json").read_text())
    config.pop("rope_parameters")
    theta = {"rope_theta": THETA}
    config.update({key: {**theta, **parameters}} if key == "rope_parameters" else {key: parameters, **theta})
    (out_dir / "config.json").write_text(json.dumps(config))
    return out_dir


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type = 'dynamic': supported are default, linear, llama3, yarn"),
        ({"rope_type": "longrope"}, "rope_type = 'longrope'"),
        ({"rope_type": "linear"}, "factor = None in the linear rope parameters: it must be a positive number"),
        ({"rope_type": "linear", "factor": -1.0}, "factor = -1.0"),
        ({"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}, "low_freq_factor = None in the llama3"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: only 1.0"),
        ({"full_attention": {"rope_type": "default"}}, "one entry per layer type"),
        ({"rope_type": "default", "rope_theta": None}, "rope_theta"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(parameters: dict[str, Any], message: str) -> None:
    config = types.SimpleNamespace(rope_parameters={"rope_theta": THETA, **parameters}, max_position_embeddings=256)
    with pytest.raises(ValueError, match=message):
        read_rope(config)


def test_a_config_file_with_such_a_rope_is_an_unsupported_model(hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    hf_dir = with_rope(hf_dirs["llama"], tmp_path / "model", "rope_parameters", {"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(UnsupportedModelError, match="rope_type = 'dynamic'"):
        read_hf_config(hf_dir)


LENGTHS = (250, 70, 13)
"""The first two are longer than the window of 64 that the stretched models were trained on."""


def long_rows() -> list[PackInput]:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for length in LENGTHS:
        tokens = torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
        rows.append(PackInput(tokens, 1, [1] * (length - 1)))
    return rows


def all_logprobs(topology: Topology, layout: Layout, hf_dirs: list[Path]) -> list[torch.Tensor]:
    logprobs = []
    for hf_dir in hf_dirs:
        policy = rank_programs.open_policy(hf_dir, layout, topology)
        outputs = policy.logprobs([pack_sequences(long_rows(), layout.pad_to_multiple)], temperature=1.0)
        assert outputs is not None
        logprobs.append(outputs[0][0])
    return logprobs


@pytest.mark.dist_cpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("layout", [Layout(), Layout(cp=2)], ids=["one", "cp2"])
def test_logprobs_are_those_of_transformers(hf_dirs: dict[str, Path], tmp_path: Path, layout: Layout) -> None:
    names = ["default", "linear", "llama3", "yarn", "yarn_attention_factor"]
    models = {"qwen2": "rope_scaling", "qwen3_tied": "rope_parameters"}
    scaled = [
        with_rope(hf_dirs[model], tmp_path / f"{model}_{name}", key, SCALINGS[name])
        for model, key in models.items()
        for name in names
    ]
    found = run_ranks(layout, all_logprobs, scaled)[0]
    for hf_dir, logprobs_N in zip(scaled, found, strict=True):
        torch.testing.assert_close(logprobs_N, transformers_logprobs(hf_dir), rtol=0, atol=1e-4)
    plain, yarn = found[names.index("default")], found[names.index("yarn")]
    assert (plain - yarn).abs().max() > 0.01, "the models do not tell the encodings apart"


def transformers_logprobs(hf_dir: Path) -> torch.Tensor:
    model = load_model(hf_dir)
    logprobs = []
    for row in long_rows():
        tokens = torch.tensor(row.token_ids)
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, :-1]
        logprobs.append(logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0])
    return torch.cat(logprobs)
