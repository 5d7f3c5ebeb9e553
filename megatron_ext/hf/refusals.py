"""Refusals of a config.json: values that no model can have, and properties that are not reproduced here."""

from __future__ import annotations

import math
from typing import Any


class UnsupportedModelError(ValueError):
    """The model has a property that this library does not reproduce. The message names it."""


COUNTS = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
    *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"),
)
"""Keys of config.json that are whole numbers of at least 1, where they are there at all."""
LARGEST_COUNT = 2**40
ROPE_KEYS = ("rope_scaling", "rope_parameters")
ROPE_NUMBERS = (
    *("rope_theta", "factor", "original_max_position_embeddings", "attention_factor"),
    *("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
)
"""Keys of the position encoding that are positive numbers, where they are there at all."""
ONLY = {
    "hidden_act": "silu",
    "use_sliding_window": False,
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
    "transformers_weights": None,
}
"""The one value of each key that is computed here."""


def refuse_impossible(raw: dict[str, Any]) -> None:
    """Raises ValueError for a count below 1, in the config as it is written: transformers divides by some of them.

    And UnsupportedModelError for numbers of the position encoding that are none. What else is no number transformers
    refuses itself.
    """
    for key in COUNTS:
        value = raw.get(key)
        if isinstance(value, int) and (isinstance(value, bool) or not 1 <= value <= LARGEST_COUNT):
            raise ValueError(f"{key} = {value!r}: it must be a whole number of at least 1")
    if isinstance(raw.get("head_dim"), int):
        _refuse_odd(raw["head_dim"])
    for key in ROPE_KEYS:
        _refuse_rope(key, raw.get(key))
    _refuse_number("rope_theta", raw.get("rope_theta"))


def _refuse_rope(key: str, rope: Any) -> None:
    if rope is None:
        return
    if not isinstance(rope, dict):
        raise UnsupportedModelError(f"{key} = {rope!r}: it must be an object, such as {{'rope_type': 'yarn', ...}}")
    for name in ROPE_NUMBERS:
        _refuse_number(f"{key}.{name}", rope.get(name))
    if rope.get("factor") is not None and not (rope.get("rope_type") or rope.get("type")):
        raise UnsupportedModelError(
            f"{key} = {rope}: a factor and no rope_type, so that nothing would be stretched: say which is meant"
        )


def _refuse_number(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and math.isfinite(value)):
        raise UnsupportedModelError(f"{name} = {value!r}: it must be a positive number")


def refuse_unsupported(config: Any) -> None:
    """Raises UnsupportedModelError for what this library does not compute, in the config as transformers reads it."""
    for key, wanted in ONLY.items():
        value = getattr(config, key, wanted)
        if value != wanted:
            raise UnsupportedModelError(f"{key} = {value!r} ({config.model_type}): only {wanted!r} is supported")
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise UnsupportedModelError(
            f"layer_types has {sorted(kinds)[0]!r} ({config.model_type}): only 'full_attention' is supported"
        )
    if not config.rms_norm_eps > 0:
        raise UnsupportedModelError(f"rms_norm_eps = {config.rms_norm_eps!r}: it must be a positive number")


def refuse_heads(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    """Raises UnsupportedModelError for heads that cannot share keys, or cannot be rotated in pairs."""
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"num_key_value_heads = {num_kv_heads}: it must divide num_attention_heads = {num_heads}"
        )
    _refuse_odd(head_dim)


def _refuse_odd(head_dim: int) -> None:
    if head_dim < 2 or head_dim % 2:
        raise UnsupportedModelError(
            f"head_dim = {head_dim}: it must be even, as positions turn pairs of its entries; without head_dim in "
            "config.json it is hidden_size / num_attention_heads"
        )
