"""Programs of a test of resharding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megatron_ext.checkpoint.hf_weights import load_hf_weights
from megatron_ext.hf.config import read_hf_config
from megatron_ext.model.policy_model import build_model
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology


def loaded_parameters(topology: Topology, layout: Layout, hf_dir: Path) -> dict[tuple[int, str], Any]:
    """Every parameter of this rank, as int64, by chunk of its virtual pipeline and name."""
    chunks = build_model(read_hf_config(hf_dir), layout, topology, torch.float32)
    for chunk in chunks:
        load_hf_weights(chunk, hf_dir, topology)
    return {
        (number, name): parameter.detach().long().numpy()
        for number, chunk in enumerate(chunks)
        for name, parameter in chunk.named_parameters()
    }
