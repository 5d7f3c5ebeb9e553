"""Rotary embeddings: frequencies of a model's position encoding, plain or stretched to a longer context.

Shape legend: D rotary dim, which is the head dim.

The numbers are those of Hugging Face transformers (modeling_rope_utils.py), computed in the same order in float32.
Deviation: transformers multiplies cosines and sines by YaRN's attention factor. We multiply the softmax scale by its
square, which gives the same scores and works with every attention back end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class UnsupportedRopeError(ValueError):
    """A position encoding that this library does not reproduce, or one with a value missing. The message names it."""


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation: every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor

    @property
    def attention_factor(self) -> float:
        return 1.0

    def window_tokens(self, max_position_embeddings: int) -> int:
        """`max_position_embeddings` is taken to be the window after stretching, as Llama-style configs write it."""
        return max_position_embeddings

    def native_window_tokens(self, max_position_embeddings: int) -> int:
        return int(max_position_embeddings / self.factor)


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1: long waves divided by `factor`, short ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_tokens: int

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        wavelength = 2 * math.pi / frequencies
        is_long = wavelength > self.original_tokens / self.low_freq_factor
        is_short = wavelength < self.original_tokens / self.high_freq_factor
        share = (self.original_tokens / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        between = (1 - share) * frequencies / self.factor + share * frequencies
        return torch.where(is_long, frequencies / self.factor, torch.where(is_short, frequencies, between))

    @property
    def attention_factor(self) -> float:
        return 1.0

    def window_tokens(self, max_position_embeddings: int) -> int:
        return max_position_embeddings

    def native_window_tokens(self, max_position_embeddings: int) -> int:
        return self.original_tokens


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): waves that turn often within the original window keep their frequency,
    those that hardly turn are divided by `factor`, with a ramp between; attention is sharpened."""

    factor: float
    original_tokens: int
    """The window that the model was trained on before."""
    attention_factor: float
    beta_fast: float
    """Turns within the original window from which a frequency is kept."""
    beta_slow: float
    """Turns up to which it is divided."""
    truncate: bool
    """Whether the ends of the ramp are rounded to whole dimensions."""

    def stretch(self, frequencies: Tensor, theta: float) -> Tensor:
        num_frequencies = frequencies.numel()
        low = self._dimension_of(self.beta_fast, 2 * num_frequencies, theta)
        high = self._dimension_of(self.beta_slow, 2 * num_frequencies, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * num_frequencies - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(num_frequencies, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        kept = 1 - ramp
        wavelength = theta ** (torch.arange(0, 2 * num_frequencies, 2).float() / (2 * num_frequencies))
        return 1.0 / (self.factor * wavelength) * (1 - kept) + 1.0 / wavelength * kept

    def window_tokens(self, max_position_embeddings: int) -> int:
        """Configs give either window in `max_position_embeddings`; the longer reading holds."""
        return max(max_position_embeddings, int(self.factor * self.original_tokens))

    def native_window_tokens(self, max_position_embeddings: int) -> int:
        return self.original_tokens

    def _dimension_of(self, turns: float, rotary_dim: int, theta: float) -> float:
        """Dimension whose wave turns `turns` times within the original window."""
        return rotary_dim * math.log(self.original_tokens / (turns * 2 * math.pi)) / (2 * math.log(theta))


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """float32 [D / 2] on the CPU: radians by which each pair of dimensions turns per position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (theta**exponents)
    return frequencies if scaling is None else scaling.stretch(frequencies, theta)


def read_rope(config: Any) -> tuple[float, RopeScaling | None]:
    """Base and scaling of a Hugging Face config (an object with attributes).

    Reads `rope_parameters` (transformers 5) or `rope_scaling` with `rope_theta` (before). Raises UnsupportedRopeError
    for a kind not in this module, a missing value, rotation of only a part of each head, or one rope per layer type.
    """
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedRopeError(f"rope_parameters has one entry per layer type ({', '.join(parameters)}): use one")
    partial = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    if partial != 1.0:
        raise UnsupportedRopeError(f"partial_rotary_factor = {partial}: only 1.0 is supported")
    theta = parameters.get("rope_theta") or getattr(config, "rope_theta", None)
    if theta is None:
        raise UnsupportedRopeError("neither rope_parameters.rope_theta nor rope_theta is in the config")
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type == "default":
        return float(theta), None
    if rope_type not in _READERS:
        supported = ", ".join(["default", *_READERS])
        raise UnsupportedRopeError(f"rope_type = {rope_type!r}: supported are {supported}")
    return float(theta), _READERS[rope_type](parameters, config)


def _number(parameters: dict[str, Any], key: str, default: float | None = None) -> float:
    value = parameters.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or not value > 0:
        kind = parameters.get("rope_type", parameters.get("type"))
        raise UnsupportedRopeError(f"{key} = {value!r} in the {kind} rope parameters: it must be a positive number")
    return float(value)


def _read_linear(parameters: dict[str, Any], config: Any) -> LinearScaling:
    return LinearScaling(factor=_number(parameters, "factor"))


def _read_llama3(parameters: dict[str, Any], config: Any) -> Llama3Scaling:
    return Llama3Scaling(
        factor=_number(parameters, "factor"),
        low_freq_factor=_number(parameters, "low_freq_factor"),
        high_freq_factor=_number(parameters, "high_freq_factor"),
        original_tokens=_original_tokens(parameters, config),
    )


def _read_yarn(parameters: dict[str, Any], config: Any) -> YarnScaling:
    original_tokens = _original_tokens(parameters, config)
    factor = _number(parameters, "factor", config.max_position_embeddings / original_tokens)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    sharpening = yarn_sharpening(factor)
    if mscale and mscale_all_dim:  # transformers ignores one without the other
        sharpening = yarn_sharpening(factor, mscale) / yarn_sharpening(factor, mscale_all_dim)
    return YarnScaling(
        factor=factor,
        original_tokens=original_tokens,
        attention_factor=_number(parameters, "attention_factor", sharpening),
        beta_fast=_number(parameters, "beta_fast", 32.0),
        beta_slow=_number(parameters, "beta_slow", 1.0),
        truncate=bool(parameters.get("truncate", True)),
    )


def _original_tokens(parameters: dict[str, Any], config: Any) -> int:
    """As transformers finds it: beside the rope parameters, in them, or the model's own window."""
    beside = getattr(config, "original_max_position_embeddings", None)
    return int(beside or _number(parameters, "original_max_position_embeddings", config.max_position_embeddings))


def yarn_sharpening(factor: float, mscale: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_READERS = {"linear": _read_linear, "llama3": _read_llama3, "yarn": _read_yarn}
