"""Seeded weights for a model configuration, written as a Hugging Face directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, Qwen3Config
from transformers.utils.logging import disable_progress_bar

from hybridflow.errors import ConfigError
from hybridflow.policy.load import load_tokenizer, tokenizer_files
from hybridflow.policy.tokenizer import END, MAX_LENGTH, PAD, SPECIAL_TOKENS, VOCAB_SIZE, build_tokenizer

INIT_STD = 0.1
"""Wide for a transformer: with the usual 0.02 a two-layer model does not find retrieval in a few hundred steps."""


def write_policy(config_dir: str | Path, out_dir: str | Path, seed: int) -> None:
    """Write model.safetensors, config, generation config and tokenizer to `out_dir`.

    Each weight matrix is drawn from a normal distribution (std: the config's `initializer_range`) with a generator of
    its own, seeded with (seed, name of the tensor): the values do not depend on the order in which a library version
    creates them. Vectors named norm are ones, other vectors zeros.

    Raises ConfigError when `config_dir` has no config.json, or a link to a file of another folder.
    """
    config_dir, out_dir = Path(config_dir), Path(out_dir)
    _refuse_links(config_dir)
    if not (config_dir / "config.json").is_file():
        raise ConfigError(f"{config_dir} has no config.json; name a model directory such as configs/models/tiny")
    load_tokenizer(config_dir, str(config_dir))
    try:
        config = AutoConfig.from_pretrained(config_dir, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config_dir}: cannot make a model of its config.json: {error}") from error
    fill_weights(model, seed, std=config.initializer_range)
    model.generation_config = GenerationConfig.from_model_config(config)
    out_dir.mkdir(parents=True, exist_ok=True)
    disable_progress_bar()  # one small file
    model.save_pretrained(out_dir)
    for path in tokenizer_files(config_dir):  # as they are: transformers would write back what its class reads
        shutil.copyfile(path, out_dir / path.name)


def _refuse_links(config_dir: Path) -> None:
    """As megatron_ext.checkpoint.files, out of reach here; of a Hugging Face cache the folder of the model counts."""
    root = config_dir.resolve()
    home = next(
        (p.parent for p in root.parents if p.name == "snapshots" and p.parent.name.startswith("models--")), root
    )
    for path in sorted(config_dir.rglob("*")):
        if not path.is_symlink():
            continue
        try:
            target = path.resolve()
        except (RuntimeError, OSError) as error:  # the first from Python 3.11 and 3.12
            raise ConfigError(f"{path} is a link that leads back to itself. Remedy: remove it") from error
        if not target.is_relative_to(home):
            raise ConfigError(
                f"{path} is a link to {target}, outside {config_dir}: it is not followed. Put the file there"
            )


def fill_weights(model: PreTrainedModel, seed: int, std: float) -> None:
    """Overwrite all parameters of `model` in place with seeded values; see `write_policy`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if "norm" in name else 0.0)
                continue
            digest = hashlib.sha256(f"{seed}\x1f{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std)


def build_tiny_config() -> Qwen3Config:
    """The tiny Qwen3: 2 layers, hidden 64, about 160K parameters, 65K of them embeddings."""
    return Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        tie_word_embeddings=True,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=INIT_STD,
        dtype="float32",
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(END),
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        use_cache=True,
    )


def build_tiny_assets(out_dir: str | Path) -> None:
    """Write config.json and the tokenizer files of the tiny model: what `configs/models/tiny` holds."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    config = build_tiny_config().to_diff_dict() | {"dtype": "float32"}
    config.pop("transformers_version", None)  # else the files would change with the library
    (out_dir / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    build_tokenizer().save_pretrained(out_dir)
