"""The model directory that engines read: the model as the trainer reads it, and nothing beside it.

SGLang reads some hundred keys of a config.json, other names for some, and every safetensors file of a directory; the
trainer reads what transformers does. So engines get a directory of their own: a config.json written from what the
trainer understood, links to the weight files that the trainer reads, and to the file that says what ends a text. Their
tokenizer they have from elsewhere (policy/engine_tokenizer.py). What SGLang 0.5.23 cannot compute of a model is refused
before it starts.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from hybridflow.errors import ConfigError
from megatron_ext.hf.config import HFConfig, read_json_config
from megatron_ext.hf.files import read_model_config
from megatron_ext.hf.rope import LinearScaling, Llama3Scaling, YarnScaling, yarn_sharpening
from megatron_ext.hf.weight_files import weight_files

ENGINE_MODEL = "engine_model"
"""Name of the directory, beside the logs of the engines."""
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""SGLang's class for a model type, which it finds by this name."""
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION_FILE = "generation_config.json"


def check_engine_model(hf_config: HFConfig, raw: dict[str, Any], named: str) -> None:
    """Raises ConfigError, naming the key of config.json, for a model that SGLang 0.5.23 dies on or computes wrongly.

    `raw` is the config as it is written, `named` how the user gave the model.
    """
    wanted = ARCHITECTURES[hf_config.model_type]
    if raw.get("architectures") != [wanted]:
        raise ConfigError(
            f"{named}: architectures = {raw.get('architectures')!r} in config.json: engines choose their class by it. "
            f'Set architectures = ["{wanted}"], if the model is one of model_type = {hf_config.model_type!r}'
        )
    if raw.get("dual_chunk_attention_config"):
        raise ConfigError(
            f"{named}: dual_chunk_attention_config in config.json: neither engines nor trainer compute it. Remove the "
            "key to use plain attention, within the window that the model was trained with"
        )
    if hf_config.moe is not None and not all(hf_config.moe.layers):
        without = [layer for layer, has_experts in enumerate(hf_config.moe.layers) if not has_experts]
        raise ConfigError(
            f"{named}: mlp_only_layers = {raw.get('mlp_only_layers')}, decoder_sparse_step = "
            f"{raw.get('decoder_sparse_step', 1)} in config.json: layers {without[:5]} have no experts, and SGLang "
            "builds experts in every layer of this model (0.5.23, models/qwen3_moe.py), without weights for these. "
            "Use a model with experts in all layers; sft and logprobs need no engine and take this one"
        )


def write_engine_model(hf_dir: str | Path, folder: Path, window: int) -> Path:
    """Makes `folder` the model of `hf_dir` for engines with so many tokens of context, and returns it."""
    source = Path(hf_dir).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = engine_config(read_model_config(source), read_json_config(source), window)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in [*weight_files(source), GENERATION_FILE]:
        if (source / name).exists():
            (folder / name).symlink_to(_target(source / name, folder))
    return folder


def _target(file: Path, folder: Path) -> Path:
    """The target of a link in `folder` to a file: within one run it is relative, as the run's folder is renamed."""
    run = folder.resolve().parents[1]
    return Path(os.path.relpath(file, folder.resolve())) if file.is_relative_to(run) else file


def engine_config(hf_config: HFConfig, raw: dict[str, Any], window: int) -> dict[str, Any]:
    """config.json with every property of the model that the trainer computes, and no other key.

    Position encodings are written in the older form, which transformers 4 and 5 read alike.
    """
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[hf_config.model_type]],
        "model_type": hf_config.model_type,
        "num_hidden_layers": hf_config.num_layers,
        "hidden_size": hf_config.hidden_size,
        "intermediate_size": hf_config.ffn_hidden_size,
        "num_attention_heads": hf_config.num_heads,
        "num_key_value_heads": hf_config.num_kv_heads,
        "head_dim": hf_config.head_dim,
        "vocab_size": hf_config.vocab_size,
        "max_position_embeddings": max(hf_config.window_tokens, window),
        "rms_norm_eps": hf_config.rms_norm_eps,
        "rope_theta": hf_config.rope_theta,
        "rope_scaling": _rope_scaling(hf_config),
        "tie_word_embeddings": hf_config.tied_embeddings,
        "hidden_act": "silu",
    }
    if (moe := hf_config.moe) is not None:
        config |= {
            "num_experts": moe.num_experts,
            "num_experts_per_tok": moe.experts_per_token,
            "moe_intermediate_size": moe.ffn_hidden_size,
            "norm_topk_prob": moe.norm_topk_prob,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return config | {key: raw[key] for key in TOKEN_KEYS if key in raw}


def _rope_scaling(hf_config: HFConfig) -> dict[str, Any] | None:
    """Under the names that SGLang reads: with YaRN it multiplies `attn_factor` by what it makes of the factor."""
    scaling = hf_config.rope_scaling
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_tokens,
        }
    if isinstance(scaling, YarnScaling):
        return {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_tokens,
            "attention_factor": scaling.attention_factor,
            "attn_factor": scaling.attention_factor / yarn_sharpening(scaling.factor),
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
    return None
