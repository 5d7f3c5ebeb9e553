"""Loads a Hugging Face checkpoint into this rank's part of the model, reading only the slices that it needs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.mapping import (
    Rule,
    expected_names,
    fuse_parts,
    hf_shapes,
    rank_range,
    rule_for,
    stacked_source,
)
from megatron_ext.model import PolicyModel, first_expert_of, first_layer_of
from megatron_ext.topology import Topology

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class WeightsError(ValueError):
    """A Hugging Face checkpoint lacks a tensor, has one of another shape, or has one that the model would not use.

    The message names it and the directory."""


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


class HFCheckpoint:
    """The tensors of a directory of safetensors files. A context manager: files are open inside."""

    def __init__(self, hf_dir: Path) -> None:
        """Raises FileNotFoundError when there are no safetensors, WeightsError when they cannot be read."""
        self.hf_dir = hf_dir
        self._open_files = ExitStack()
        self._handles: dict[str, Any] = {}
        self._names_in: dict[str, frozenset[str]] = {}
        if (hf_dir / INDEX_NAME).exists():
            self._file_of: dict[str, str] = json.loads((hf_dir / INDEX_NAME).read_text())["weight_map"]
        elif (hf_dir / SINGLE_NAME).exists():
            self._file_of = dict.fromkeys(self._open(SINGLE_NAME).keys(), SINGLE_NAME)
        else:
            raise FileNotFoundError(f"{hf_dir} has neither {SINGLE_NAME} nor {INDEX_NAME}")
        self.names = self._file_of.keys()
        """What the directory says it has."""

    def __enter__(self) -> HFCheckpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open_files.close()

    def read(self, name: str, shape: tuple[int, ...], part: tuple[slice | int, ...]) -> Tensor:
        """Entries `part` of tensor `name`, whose full shape must be `shape`; the rest is not read."""
        tensor_slice = self._handle(name).get_slice(name)
        found = tuple(tensor_slice.get_shape())
        if found != shape:
            raise WeightsError(f"{name} in {self.hf_dir} has shape {list(found)}, the config implies {list(shape)}")
        return tensor_slice[part]

    def refuse_unused(self, hf_config: HFConfig) -> None:
        """Raises WeightsError for a tensor that the model would silently leave out, such as a bias it does not have.

        A tied lm_head and the rotary frequencies of old checkpoints are no loss.
        """
        expected = expected_names(hf_config)
        expected |= {stacked.name for name in expected if (stacked := stacked_source(name, hf_config))}
        if hf_config.tied_embeddings:
            expected.add("lm_head.weight")
        unused = sorted(name for name in self.names - expected if not name.endswith("rotary_emb.inv_freq"))
        if unused:
            others = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
            raise WeightsError(
                f"{unused[0]}{others} in {self.hf_dir}: a {hf_config.model_type} with this config.json has no such "
                "tensor; give the config.json that belongs to the weights"
            )

    def _handle(self, name: str) -> Any:
        file_name = self._file_of.get(name)
        if file_name is None:
            raise WeightsError(f"{name} is not in {self.hf_dir}, but the model needs it")
        handle = self._open(file_name)
        if name not in self._names_in[file_name]:
            raise WeightsError(f"{name} is not in {file_name} of {self.hf_dir}, where {INDEX_NAME} has it")
        return handle

    def _open(self, file_name: str) -> Any:
        if file_name not in self._handles:
            path = self.hf_dir / file_name
            try:
                handle = self._open_files.enter_context(safe_open(str(path), framework="pt"))
            except FileNotFoundError as error:
                raise WeightsError(f"{path} does not exist, but {INDEX_NAME} names it; copy it there") from error
            except SafetensorError as error:
                raise WeightsError(f"{path} is damaged or cut short ({error}); copy it again") from error
            self._handles[file_name], self._names_in[file_name] = handle, frozenset(handle.keys())
        return self._handles[file_name]
