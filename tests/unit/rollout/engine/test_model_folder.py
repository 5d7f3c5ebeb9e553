"""The files of a model that engines are given, and which models they are not given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig

from hybridflow.errors import ConfigError
from hybridflow.rollout.engine.model_folder import check_engine_model, engine_config, write_engine_model
from megatron_ext.hf.config import read_hf_config, read_json_config
from megatron_ext.hf.files import check_hf_weights, read_model_config

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With files that nobody reads: a second safetensors, an older index, code, another quantisation config."""
    folder = tmp_path / "model"
    LlamaForCausalLM(LlamaConfig(**SHAPE, eos_token_id=7)).save_pretrained(folder)
    save_file({"model.norm.weight": torch.zeros(16)}, folder / "consolidated.safetensors")
    index = {"weight_map": {"model.norm.weight": "consolidated.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("modeling_mine.py", "hf_quant_config.json", "tokenizer.json", "pytorch_model.bin"):
        (folder / name).write_text("{}")
    return folder


def change(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))
    return folder


def test_links_within_a_run_hold_when_its_folder_is_renamed(model: Path, tmp_path: Path) -> None:
    starting = tmp_path / ".run.starting"
    starting.mkdir()
    model.rename(starting / "initial_model")
    write_engine_model(starting / "initial_model", starting / "logs" / "engine_model", window=32)
    run = starting.rename(tmp_path / "run")
    link = run / "logs" / "engine_model" / "model.safetensors"
    assert link.resolve(strict=True) == run / "initial_model" / "model.safetensors"


def test_engines_get_what_the_trainer_reads_and_nothing_beside_it(model: Path, tmp_path: Path) -> None:
    """The single file makes the index void, as in transformers."""
    change(model, quantize=True, max_sequence_length=8, bias=True)
    check_hf_weights(model, read_model_config(model))
    folder = write_engine_model(model, tmp_path / "engine", window=32)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors"),
    ]
    assert (folder / "model.safetensors").resolve() == model / "model.safetensors"
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantize", "max_sequence_length", "bias"} & config.keys()
    assert config["eos_token_id"] == 7


def test_the_files_of_an_index_are_linked_where_there_is_no_single_one(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "part.safetensors")
    names = dict.fromkeys(read_names(model), "part.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    folder = write_engine_model(model, tmp_path / "engine", window=32)
    assert [path.name for path in folder.glob("*.safetensors*")] == ["part.safetensors"]


def read_names(model: Path) -> list[str]:
    from megatron_ext.hf.weight_files import tensor_names

    return tensor_names(model / "part.safetensors")


def test_the_attention_factor_is_given_as_sglang_reads_it(model: Path) -> None:
    """It multiplies attn_factor by 0.1 ln 4 + 1 = 1.138629: 1.1 / 1.138629 = 0.966074."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0, "attention_factor": 1.1}
    change(model, rope_parameters=rope)
    hf_config = read_hf_config(model)
    scaling = engine_config(hf_config, read_json_config(model), 64)["rope_scaling"]
    assert scaling["attn_factor"] == pytest.approx(0.966074, abs=1e-6)
    assert scaling["original_max_position_embeddings"] == 64
    assert engine_config(hf_config, {}, 64)["max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": "gone"}, "architectures = None in config.json: engines choose their class by it"),
        ({"architectures": ["LlamaModel"]}, r"Set architectures = \[\"LlamaForCausalLM\"\]"),
        ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config in config.json"),
    ],
)
def test_what_sglang_dies_on_is_refused_by_name(model: Path, changes: dict[str, Any], said: str) -> None:
    change(model, **changes)
    with pytest.raises(ConfigError, match=f"--model x: .*{said}"):
        check_engine_model(read_hf_config(model), read_json_config(model), "--model x")


@pytest.mark.parametrize("changes", [{"mlp_only_layers": [1]}, {"decoder_sparse_step": 2}])
def test_layers_without_experts_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = Qwen3MoeConfig(
        **SHAPE, num_experts=4, num_experts_per_tok=2, architectures=["Qwen3MoeForCausalLM"], **changes
    )
    config.save_pretrained(tmp_path)
    key, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=rf"{key} = {re_value(value)}.* have no experts, and SGLang builds experts"):
        check_engine_model(read_hf_config(tmp_path), read_json_config(tmp_path), "--model x")


def re_value(value: Any) -> str:
    return str(value).replace("[", r"\[").replace("]", r"\]")


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "yarn", "factor": float("inf")}, "factor = inf: it must be a positive number"),
        ({"rope_type": "yarn", "factor": True}, "factor = True: it must be a positive number"),
        ({"rope_type": "yarn", "factor": "4"}, "factor = '4': it must be a positive number"),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0},
            "original_max_position_embeddings = 0",
        ),
        ({"rope_type": "default", "rope_theta": -5}, "rope_theta = -5: it must be a positive number"),
        ({"factor": 4.0}, "a factor and no rope_type, so that nothing would be stretched"),
        ("yarn", "rope_scaling = 'yarn': it must be an object"),
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type = 'dynamic': supported are default, linear, llama3, yarn"),
    ],
)
def test_a_rope_scaling_that_is_none_is_refused(model: Path, rope: Any, said: str) -> None:
    change(model, rope_parameters="gone", rope_theta=100.0, rope_scaling=rope)
    with pytest.raises(ValueError, match=said):
        read_hf_config(model)


@pytest.mark.parametrize("head_dim", [1, 3, 33])
def test_a_head_that_cannot_be_turned_in_pairs_is_refused(model: Path, head_dim: int) -> None:
    change(model, head_dim=head_dim)
    with pytest.raises(ValueError, match=f"head_dim = {head_dim}: it must be even"):
        read_hf_config(model)
