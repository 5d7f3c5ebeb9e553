"""Which files hold a model, and what is refused about them: the rule of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_ext.hf.files import check_hf_weights, read_model_config
from megatron_ext.hf.weight_files import WeightsError, has_own_head, saved_dtype, weight_files, weight_map

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def save(folder: Path, **tensors: torch.Tensor) -> None:
    kept = load_file(folder / "model.safetensors")
    save_file(
        kept | {name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )


def split(folder: Path, index: dict[str, str], **files: list[str]) -> None:
    """The weights in several files, with this index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, kept in files.items():
        save_file({key: tensors[key] for key in kept}, folder / f"{name}.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_a_single_file_makes_an_index_beside_it_void(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"old": "old.safetensors"}}))
    assert weight_files(model) == ["model.safetensors"]
    check_hf_weights(model, read_model_config(model))
    loaded = LlamaForCausalLM.from_pretrained(model).state_dict()[EMBEDDING]
    assert torch.equal(loaded, load_file(model / "model.safetensors")[EMBEDDING])


def test_an_output_projection_of_its_own_is_kept_though_the_config_ties_it(model: Path) -> None:
    save(model, lm_head__weight=torch.ones(40, 8))
    assert has_own_head(model)
    assert not read_model_config(model).tied_embeddings
    reference = LlamaForCausalLM.from_pretrained(model)
    assert torch.equal(reference.lm_head.weight, torch.ones(40, 8))


def test_the_same_projection_twice_is_one(model: Path) -> None:
    save(model, lm_head__weight=load_file(model / "model.safetensors")[EMBEDDING])
    assert not has_own_head(model)
    assert read_model_config(model).tied_embeddings


def test_a_difference_in_the_last_row_counts(model: Path) -> None:
    head = load_file(model / "model.safetensors")[EMBEDDING].clone()
    head[-1, -1] += 1e-6
    save(model, lm_head__weight=head)
    assert has_own_head(model)


def test_what_a_file_holds_beyond_its_index_is_named(model: Path) -> None:
    """transformers and SGLang would read it."""
    names = list(weight_map(model))
    index = dict.fromkeys(names, "a.safetensors")
    del index["model.norm.weight"]
    split(model, index, a=names)
    with pytest.raises(WeightsError, match=r"model.norm.weight is in a.safetensors .* does not list it"):
        check_hf_weights(model, read_model_config(model))


def test_a_tensor_in_two_files_is_named(model: Path) -> None:
    names = list(weight_map(model))
    index = dict.fromkeys(names, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    split(model, index, a=names, b=["model.norm.weight"])
    with pytest.raises(WeightsError, match=r"model.norm.weight is in a.safetensors .* lists it in b.safetensors"):
        check_hf_weights(model, read_model_config(model))


@pytest.mark.parametrize("name", ["../a.safetensors", "sub/a.safetensors", "/etc/a.safetensors"])
def test_an_index_that_leads_out_of_its_directory_is_refused(model: Path, name: str) -> None:
    split(model, {EMBEDDING: name})
    with pytest.raises(WeightsError, match="weights must be files of the same directory"):
        weight_map(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_that_of_the_embedding(model: Path, dtype: torch.dtype) -> None:
    save(model, model__embed_tokens__weight=torch.ones(40, 8, dtype=dtype))
    assert saved_dtype(model) == str(dtype).removeprefix("torch.")
