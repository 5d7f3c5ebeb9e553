"""Seeded policies, and the committed assets of the tiny one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hybridflow.errors import ConfigError
from hybridflow.policy.commands import app
from hybridflow.policy.init import build_tiny_assets, write_policy

TINY = Path(__file__).parents[3] / "configs" / "models" / "tiny"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("policy")
    write_policy(TINY, out, seed=3)
    return out


def test_committed_assets_are_what_the_code_builds(tmp_path: Path) -> None:
    build_tiny_assets(tmp_path)
    built, committed = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in (tmp_path, TINY))
    assert built.keys() == committed.keys()
    for name, content in built.items():
        assert content == committed[name], f"{name} differs: run `hybridflow model build-assets --output {TINY}`"


def test_weights_have_the_promised_scale(policy: Path) -> None:
    tensors = load_file(policy / "model.safetensors")
    assert "lm_head.weight" not in tensors  # tied to the embeddings
    assert tensors["model.embed_tokens.weight"].shape == (1024, 64)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float32
        if tensor.dim() == 1:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        else:
            assert tensor.std().item() == pytest.approx(0.1, rel=0.05), name
            assert abs(tensor.mean().item()) < 0.01, name


def test_seed_decides_the_bytes(policy: Path, tmp_path: Path) -> None:
    write_policy(TINY, tmp_path / "same", seed=3)
    write_policy(TINY, tmp_path / "other", seed=4)
    same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("same", "other"))
    assert same == (policy / "model.safetensors").read_bytes()
    assert other != same


def test_tensors_of_equal_shape_differ(policy: Path) -> None:
    tensors = load_file(policy / "model.safetensors")
    first, second = (tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] for layer in (0, 1))
    assert not torch.equal(first, second)


def test_policy_loads_offline_and_generates(policy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True)
    assert model.config.model_type == "qwen3" and model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.rope_parameters["rope_theta"] == 10000.0
    assert model.config.max_position_embeddings == 32768
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 3
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == 0
    prompt = torch.tensor([tokenizer.encode("What is the currency?")])
    output = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
    assert output.shape[1] <= prompt.shape[1] + 3 and output[0, : prompt.shape[1]].tolist() == prompt[0].tolist()


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        write_policy(tmp_path, tmp_path / "out", seed=0)


def test_command_writes_a_model(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["init", "--config", str(TINY), "--output", str(tmp_path / "m"), "--seed", "1"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m" / "model.safetensors").is_file() and "seed 1" in result.output
