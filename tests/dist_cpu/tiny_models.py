"""Tiny random Hugging Face models, and rows to train them on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from megatron_ext.packing.micro_batch import PackInput

VOCAB_SIZE = 259
"""Odd, so that two tensor parallel ranks need a row of padding."""

SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "head_dim": 32,
}

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True}
"""More experts than hidden size would suggest, so that some get few tokens of a row or none."""

CLASSES = {
    "qwen3_tied": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3_untied": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False, "head_dim": 16}),
    "qwen2_tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True, "head_dim": 16}),
    "llama_tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True, "head_dim": 16}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False, "head_dim": 16}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"tie_word_embeddings": False, **EXPERTS}),
    "qwen3_moe_mixed": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {"tie_word_embeddings": True, **EXPERTS, "norm_topk_prob": False, "mlp_only_layers": [1]},
    ),
}


def write_model(name: str, out_dir: Path) -> Path:
    """Saves model `name` with weights large enough that every part of it matters, norms and biases included."""
    config_class, model_class, changes = CLASSES[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SHAPE, **changes})).float()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(4)
    model.save_pretrained(out_dir / name)
    return out_dir / name


def load_model(hf_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32, attn_implementation="eager").eval()


def make_rows(count: int = 8) -> list[PackInput]:
    """Rows of unequal length; some predicted tokens are masked out, and each has its own weight in the loss.

    `share` and `first` are what the aggregation `sequence_mean` needs (hybridflow/trainer/batch.py).
    """
    generator = torch.Generator().manual_seed(11)
    rows = []
    for number in range(count):
        length = 9 + 7 * (number * 5 % count)
        tokens = torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()
        predict_from = max(1, length // 3)
        mask = [int((number + position) % 5 != 2) for position in range(length - predict_from)]
        num_counted = sum(mask)
        inputs = {
            "weight": torch.randn(num_counted, generator=generator).tolist(),
            "share": [1 / num_counted] * num_counted,
            "first": [1.0, *[0.0] * (num_counted - 1)],
        }
        rows.append(PackInput(tokens, predict_from, mask, inputs, row_id=number, group_id=number // 2))
    return rows
