"""The error of the platform layer."""

from __future__ import annotations


class PlatformError(ImportError):
    """Megatron-Core cannot be used here: missing, of another version, imported too early, or without a symbol we patch."""
