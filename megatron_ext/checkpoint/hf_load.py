"""Loads a Hugging Face checkpoint into this rank's part of the model, reading only the slices that it needs."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.files import HFCheckpoint, WeightsError
from megatron_ext.hf.mapping import Rule, fuse_parts, hf_shapes, rank_range, rule_for, stacked_source
from megatron_ext.model.policy_model import PolicyModel, first_expert_of, first_layer_of
from megatron_ext.parallel.topology import Topology

__all__ = ["HFCheckpoint", "WeightsError", "load_hf_weights"]


@torch.no_grad()
def load_hf_weights(model: PolicyModel, hf_dir: str | Path, topology: Topology) -> None:
    """Fills every parameter of `model` from the safetensors in `hf_dir`, cast to the parameter's dtype.

    Only the slices that this rank needs are read, one parameter at a time. Experts may be stored one by one or stacked.
    Raises WeightsError naming a tensor that is missing, not expected or of the wrong shape, FileNotFoundError without
    safetensors.
    """
    hf_config = model.hf_config
    first_layer, first_expert = first_layer_of(model), first_expert_of(hf_config, topology)
    with HFCheckpoint(Path(hf_dir)) as checkpoint:
        checkpoint.refuse_unused(hf_config)
        for name, parameter in model.named_parameters():
            rule = rule_for(name, first_layer, hf_config, first_expert)
            value = _rank_value(checkpoint, rule, hf_config, topology)
            if rule.is_vocab:
                # Padding rows are never looked up and never predicted; zero keeps them out of every norm.
                parameter.zero_()
                parameter[: value.size(0)].copy_(value)
            else:
                parameter.copy_(value)


def _rank_value(checkpoint: HFCheckpoint, rule: Rule, hf_config: HFConfig, topology: Topology) -> Tensor:
    rank, size = (topology.etp_rank, topology.etp_size) if rule.is_expert else (topology.tp_rank, topology.tp_size)
    parts = []
    for name, shape in zip(rule.hf, hf_shapes(rule, hf_config), strict=True):
        part = [slice(None)] * len(shape)
        if rule.cut_dim is not None:
            part[rule.cut_dim] = slice(*rank_range(shape[rule.cut_dim], rank, size))
        stacked = stacked_source(name, hf_config) if name not in checkpoint.names else None
        if stacked is not None and stacked.name in checkpoint.names:
            start, stop, _ = part[0].indices(shape[0])
            part[0] = slice(stacked.first_row + start, stacked.first_row + stop)
            parts.append(checkpoint.read(stacked.name, stacked.shape, (stacked.expert, *part)))
        else:
            parts.append(checkpoint.read(name, shape, tuple(part)))
    return fuse_parts(parts, rule.fuse, hf_config.num_kv_heads // topology.tp_size)
