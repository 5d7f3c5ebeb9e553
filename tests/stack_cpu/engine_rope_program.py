"""Prints, for each dialect of config.json, how far SGLang's rotation of the engine's model is from the trainer's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from hybridflow.rollout.engine.model_folder import write_engine_model
from megatron_ext.hf.files import read_model_config
from megatron_ext.hf.rope import rotary_frequencies
from tests.dist_cpu.config_dialects import write_dialects
from tests.dist_cpu.tiny_models import CLASSES, write_model

WINDOW = 100


def largest_difference(folder: Path, out_dir: Path) -> float:
    """The largest difference of a cosine or sine, over the positions of the window."""
    from sglang.srt.layers.rotary_embedding import get_rope
    from sglang.srt.utils.hf_transformers_utils import get_rope_config
    from transformers import AutoConfig

    hf_config = read_model_config(folder)
    config = AutoConfig.from_pretrained(write_engine_model(folder, out_dir, WINDOW))
    theta, scaling = get_rope_config(config)
    size = hf_config.head_dim
    rope = get_rope(size, size, config.max_position_embeddings, theta, rope_scaling=scaling, dtype=torch.float32)
    positions = torch.arange(min(hf_config.window_tokens, rope.cos_sin_cache.size(0))).float()
    angles = torch.outer(positions, rotary_frequencies(size, hf_config.rope_theta, hf_config.rope_scaling))
    factor = 1.0 if hf_config.rope_scaling is None else hf_config.rope_scaling.attention_factor
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1) * factor
    return (rope.cos_sin_cache[: len(positions)] - expected).abs().max().item()


def main(root: Path) -> None:
    models = {name: write_model(name, root / "models") for name in CLASSES}
    dialects = write_dialects(models, root / "dialects")
    found = {
        name: largest_difference(folder, root / "engines" / name)
        for name, folder in dialects.items()
        if name != "moe_dense_layers"  # refused for engines
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
