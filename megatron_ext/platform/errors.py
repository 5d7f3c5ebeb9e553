"""The error of the platform layer."""

from __future__ import annotations


class PlatformError(ImportError):
    """Megatron-Core cannot be used here: missing, another version, imported too early, or lacking a symbol we patch."""
