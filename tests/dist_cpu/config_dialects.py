"""Ways in which people write the config.json of the families, as changes to a tiny model; None takes a key away."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

THETA = 500.0
"""Small, so that every wave turns within rows of a few hundred tokens."""
WINDOW = 256


def old_rope(kind: str = "rope_type", **values: Any) -> dict[str, Any]:
    """As transformers 4 writes it: `rope_scaling` beside `rope_theta`."""
    scaling = {kind: values.pop("name"), **values} if values else None
    return {"rope_parameters": None, "rope_scaling": scaling, "rope_theta": THETA}


def new_rope(**values: Any) -> dict[str, Any]:
    """As transformers 5 does."""
    return {"rope_parameters": {"rope_theta": THETA, **values}}


YARN = {"name": "yarn", "factor": 4.0}
YARN_64 = {**YARN, "original_max_position_embeddings": 64}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
NEW_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, dict[str, Any]] = {
    "plain_old": old_rope(),
    "plain_new": new_rope(rope_type="default"),
    "linear_old": old_rope(name="linear", factor=2.0),
    "linear_type": old_rope("type", name="linear", factor=2.0),
    "linear_new": new_rope(rope_type="linear", factor=2),
    "llama3_old": old_rope(name="llama3", **LLAMA3),
    "llama3_new": new_rope(rope_type="llama3", **LLAMA3),
    "yarn_old": old_rope(**YARN_64),
    "yarn_type": old_rope("type", **YARN_64),
    "yarn_new": new_rope(**NEW_YARN),
    "yarn_window_of_before": {**new_rope(**NEW_YARN), "max_position_embeddings": 64},
    "yarn_without_window": {**old_rope(**YARN), "max_position_embeddings": 64},
    "yarn_beside": {**new_rope(rope_type="yarn", factor=4.0), "original_max_position_embeddings": 64},
    "yarn_qwen_recipe": {**old_rope(**YARN_64), "max_position_embeddings": 80},
    "yarn_attention_factor": new_rope(**NEW_YARN, attention_factor=1.4),
    "yarn_no_sharpening": new_rope(**NEW_YARN, attention_factor=1.0),
    "yarn_betas": new_rope(**NEW_YARN, beta_fast=20.0, beta_slow=2.0),
    "yarn_integer_betas": new_rope(**NEW_YARN, beta_fast=32, beta_slow=1),
    "yarn_untruncated": new_rope(**NEW_YARN, truncate=False),
    "yarn_mscales": new_rope(**NEW_YARN, mscale=0.7, mscale_all_dim=0.3),
    "yarn_one_mscale": new_rope(**NEW_YARN, mscale=0.7),
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_without_head_dim": ("llama", {"head_dim": None}),
    "llama_ignores_a_sliding_window": ("llama", {"sliding_window": 8}),
    "llama_other_names_of_the_window": ("llama", {"max_sequence_length": 16, "seq_length": 16}),
    "llama_bias_is_no_key": ("llama", {"bias": True}),
    "llama_rope_style_is_no_key": ("llama", {"rope_is_neox_style": False}),
    "llama_pretraining_tp": ("llama", {"pretraining_tp": 2}),
    "llama_eps": ("llama", {"rms_norm_eps": 1e-2}),
    "llama_tied": ("llama_tied", {}),
    "qwen2_without_head_dim": ("qwen2", {"head_dim": "gone"}),
    "qwen2_unused_window": ("qwen2", {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1}),
    "qwen2_layer_types": ("qwen2", {"layer_types": ["full_attention"] * 4}),
    "qwen2_tied": ("qwen2_tied", {}),
    "qwen2_eps": ("qwen2", {"rms_norm_eps": 1e-2}),
    "qwen3_old_dtype_key": ("qwen3_tied", {"dtype": None, "torch_dtype": "bfloat16"}),
    "qwen3_logit_soft_cap_is_no_key": ("qwen3_tied", {"final_logit_softcapping": 2.0}),
    "qwen3_attention_chunk_is_no_key": ("qwen3_tied", {"attention_chunk_size": 8}),
    "qwen3_scaled_embedding_is_no_key": ("qwen3_tied", {"embedding_multiplier": 3.0, "logits_scaling": 2.0}),
    "qwen3_dropout_in_training_only": ("qwen3_tied", {"attention_dropout": 0.5}),
    "qwen3_no_architectures": ("qwen3_tied", {"architectures": None}),
    "qwen3_untied": ("qwen3_untied", {}),
    "moe": ("qwen3_moe", {}),
    "moe_weights_not_normalised": ("qwen3_moe", {"norm_topk_prob": False}),
    "moe_one_expert": ("qwen3_moe", {"norm_topk_prob": False, "num_experts_per_tok": 1}),
    "moe_all_experts": ("qwen3_moe", {"num_experts_per_tok": 8}),
    "moe_dense_layers": ("qwen3_moe_mixed", {}),
    "moe_router_loss_is_for_training": ("qwen3_moe", {"router_aux_loss_coef": 9.0, "output_router_logits": True}),
}


def write_dialects(hf_dirs: dict[str, Path], root: Path) -> dict[str, Path]:
    """A model directory of each, and of one whose tied config lies about its weights."""
    families = ("qwen2", "qwen3_tied")
    cases = {f"{family}_{name}": (family, changes) for name, changes in ROPES.items() for family in families}
    folders = {name: _change(hf_dirs[family], root / name, changes) for name, (family, changes) in cases.items()}
    folders |= {name: _change(hf_dirs[family], root / name, changes) for name, (family, changes) in OTHERS.items()}
    folders["tied_with_a_head_of_its_own"] = with_own_head(hf_dirs["qwen3_tied"], root / "own_head")
    return folders


def with_own_head(hf_dir: Path, out_dir: Path) -> Path:
    """Its config ties the embeddings, its file holds another output projection."""
    shutil.copytree(hf_dir, out_dir)
    tensors = load_file(hf_dir / "model.safetensors")
    tensors["lm_head.weight"] = torch.randn_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, out_dir / "model.safetensors", {"format": "pt"})
    return out_dir


def _change(hf_dir: Path, out_dir: Path, changes: dict[str, Any]) -> Path:
    out_dir.mkdir(parents=True)
    for path in hf_dir.iterdir():
        if path.name != "config.json":
            (out_dir / path.name).hardlink_to(path)
    config = json.loads((hf_dir / "config.json").read_text()) | changes
    dropped = {key for key, value in changes.items() if value is None or value == "gone"}
    (out_dir / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in dropped}))
    return out_dir
