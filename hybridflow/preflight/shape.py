"""The numbers of a model that decide how it can be cut and what it weighs, from config.json alone.

The library that reads a model takes seconds to import. What is checked here is checked again with it, so a key that is
not there is left to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridflow.errors import ConfigError


@dataclass(frozen=True)
class ExpertShape:
    """Sizes of one mixture-of-experts layer."""

    num_experts: int
    experts_per_token: int
    ffn_hidden_size: int


@dataclass(frozen=True)
class ModelShape:
    """Under the names of `megatron_ext.hf.config.HFConfig`."""

    model_type: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    moe: ExpertShape | None = None

    @property
    def num_parameters(self) -> int:
        """Parameters of the matrices; vectors weigh nothing beside them."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        if self.moe is None:
            feed_forward = 3 * self.hidden_size * self.ffn_hidden_size
        else:
            feed_forward = 3 * self.hidden_size * self.moe.ffn_hidden_size * self.moe.num_experts
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * (attention + feed_forward) + embeddings

    @property
    def kv_elements_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def read_shape(hf_dir: str | Path) -> ModelShape | None:
    """Sizes from `hf_dir`/config.json; None where it lacks a key that the library has a default for.

    Raises ConfigError where there is no such file, or it is no JSON object.
    """
    path = Path(hf_dir) / "config.json"
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.path = {str(hf_dir)!r}: cannot read its config.json: {error}. Copy the directory again"
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"model.path = {str(hf_dir)!r}: its config.json is no object. Copy the directory again")
    try:
        heads, hidden = _number(values, "num_attention_heads"), _number(values, "hidden_size")
        return ModelShape(
            model_type=str(values["model_type"]),
            num_layers=_number(values, "num_hidden_layers"),
            hidden_size=hidden,
            ffn_hidden_size=_number(values, "intermediate_size"),
            num_heads=heads,
            num_kv_heads=_number(values, "num_key_value_heads"),
            head_dim=values.get("head_dim") or hidden // heads,
            vocab_size=_number(values, "vocab_size"),
            tied_embeddings=bool(values.get("tie_word_embeddings", False)),
            moe=_read_experts(values),
        )
    except (KeyError, TypeError, ZeroDivisionError):
        return None  # the library says what is wrong with it, or fills it in


def _number(values: dict[str, Any], key: str) -> int:
    value = values[key]
    if type(value) is not int or value < 1:
        raise TypeError(key)
    return value


def _read_experts(values: dict[str, Any]) -> ExpertShape | None:
    if "moe" not in str(values["model_type"]):
        return None
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
    return ExpertShape(*(_number(values, name) for name in names))
