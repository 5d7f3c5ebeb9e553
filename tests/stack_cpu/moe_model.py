"""A tiny mixture of experts that engines and trainer can both compute."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM


def write_moe(dense: Path, out_dir: Path) -> None:
    """A mixture of experts with the tokenizer of the dense model."""
    config = Qwen3MoeConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=8,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        max_position_embeddings=1024,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(config).float()
    with torch.no_grad():
        # transformers makes the padding token's row 0: where a policy draws this token, the first norm multiplies its
        # gradient by 1 / sqrt(eps) = 1,000
        model.model.embed_tokens.weight[config.pad_token_id].normal_(std=config.initializer_range)
    model.generation_config = GenerationConfig.from_model_config(config)
    shutil.copytree(dense, out_dir, ignore=shutil.ignore_patterns("*.safetensors", "*config.json"))
    shutil.copy(dense / "tokenizer_config.json", out_dir)
    model.save_pretrained(out_dir)
