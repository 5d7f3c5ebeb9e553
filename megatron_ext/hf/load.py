"""Loads a Hugging Face checkpoint into this rank's part of the model, reading only the slices that it needs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.mapping import Rule, fuse_parts, hf_shapes, rank_range, rule_for
from megatron_ext.model import PolicyModel, first_layer_of
from megatron_ext.topology import Topology

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class WeightsError(ValueError):
    """A Hugging Face checkpoint lacks a tensor or has one of another shape. The message names it and the directory."""


@torch.no_grad()
def load_hf_weights(model: PolicyModel, hf_dir: str | Path, topology: Topology) -> None:
    """Fills every parameter of `model` from the safetensors in `hf_dir`, cast to the parameter's dtype.

    Raises WeightsError naming a tensor that is missing or of the wrong shape, FileNotFoundError without safetensors.
    """
    hf_config = model.hf_config
    first_layer = first_layer_of(model)
    with HFCheckpoint(Path(hf_dir)) as checkpoint:
        for name, parameter in model.named_parameters():
            rule = rule_for(name, first_layer, hf_config)
            value = _rank_value(checkpoint, rule, hf_config, topology)
            if rule.is_vocab:
                # Padding rows are never looked up and never predicted; zero keeps them out of every norm.
                parameter.zero_()
                parameter[: value.size(0)].copy_(value)
            else:
                parameter.copy_(value)


def _rank_value(checkpoint: HFCheckpoint, rule: Rule, hf_config: HFConfig, topology: Topology) -> Tensor:
    parts = [
        checkpoint.read(name, shape, rule.cut_dim, topology)
        for name, shape in zip(rule.hf, hf_shapes(rule, hf_config), strict=True)
    ]
    return fuse_parts(parts, rule.fuse, hf_config.num_kv_heads // topology.tp_size)


class HFCheckpoint:
    """The tensors of a directory of safetensors files. A context manager: files are open inside."""

    def __init__(self, hf_dir: Path) -> None:
        self.hf_dir = hf_dir
        self._open_files = ExitStack()
        self._handles: dict[str, Any] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._file_of: dict[str, str] | None = None
        if (hf_dir / INDEX_NAME).exists():
            self._file_of = json.loads((hf_dir / INDEX_NAME).read_text())["weight_map"]
        elif not (hf_dir / SINGLE_NAME).exists():
            raise FileNotFoundError(f"{hf_dir} has neither {SINGLE_NAME} nor {INDEX_NAME}")

    def __enter__(self) -> HFCheckpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open_files.close()

    def read(self, name: str, shape: tuple[int, ...], cut_dim: int | None, topology: Topology) -> Tensor:
        """This rank's part along `cut_dim` (None: the whole) of tensor `name`, whose full shape must be `shape`."""
        handle = self._handle(name)
        tensor_slice = handle.get_slice(name)
        found = tuple(tensor_slice.get_shape())
        if found != shape:
            raise WeightsError(f"{name} in {self.hf_dir} has shape {list(found)}, the config implies {list(shape)}")
        if cut_dim is None:
            return handle.get_tensor(name)
        start, stop = rank_range(shape[cut_dim], topology.tp_rank, topology.tp_size)
        return tensor_slice[start:stop] if cut_dim == 0 else tensor_slice[:, start:stop]

    def _handle(self, name: str) -> Any:
        file_name = SINGLE_NAME if self._file_of is None else self._file_of.get(name)
        if file_name is not None and file_name not in self._handles:
            path = str(self.hf_dir / file_name)
            handle = self._open_files.enter_context(safe_open(path, framework="pt"))
            self._handles[file_name], self._names[file_name] = handle, frozenset(handle.keys())
        if file_name is None or name not in self._names[file_name]:
            raise WeightsError(f"{name} is not in {self.hf_dir}, but the model needs it")
        return self._handles[file_name]
