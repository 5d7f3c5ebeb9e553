"""Which FlashAttention computes torch's flash attention: version 3 or 4 where it is installed, else torch's own, 2.

At 65,536 tokens version 2 stays near 25% of an H100's peak, 3 and cuDNN reach about 41%. The choice holds for the
process. Tested on a CPU against a stand-in for torch's registry; not run on a GPU yet.
"""

from __future__ import annotations

import logging

import torch

from megatron_ext.kernels.choice import installed_flash

logger = logging.getLogger(__name__)

VERSIONS = {9: ("FA3", "FA4"), 10: ("FA4",)}
"""By major compute capability, the better first: 3 was written for Hopper, 4 for Blackwell, and runs on Hopper too."""


def active_flash() -> str | None:
    """The library that computes torch's flash attention; None for torch's own."""
    current = getattr(torch.nn.attention, "current_flash_attention_impl", None)
    return None if current is None else current()


def activate_flash(capability_major: int) -> str | None:
    """Has torch use "FA3" or "FA4" from here on, and says which; None where neither can be had: torch keeps its own.

    What is installed and does not load is a warning with the reason: the run goes on, slower.
    """
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None:
        return None  # an older torch
    current = active_flash()
    if current is not None:
        return current
    installed = installed_flash()
    for version in VERSIONS.get(capability_major, ()):
        if version not in installed:
            continue
        try:
            activate(version)
        except (ImportError, RuntimeError, ValueError, OSError) as error:
            logger.warning("%s is installed and torch cannot use it: %s", version, error)
        else:
            return version
    return None
