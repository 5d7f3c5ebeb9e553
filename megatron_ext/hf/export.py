"""Gives the model's weights back under their Hugging Face names, whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from megatron_ext.hf.load import INDEX_NAME, SINGLE_NAME
from megatron_ext.hf.mapping import rule_for, split_parts
from megatron_ext.model import PolicyModel, first_layer_of
from megatron_ext.topology import Topology

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
"""Files of the source directory that hold or list weights, and so are not copied."""


@torch.no_grad()
def iterate_hf_tensors(model: PolicyModel, topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Name and full tensor of every weight of this pipeline stage, one at a time, in the dtype of training.

    Collective over the tensor parallel group: its ranks must iterate together to the end, and all get all tensors.
    Values are the bits of the parameters. Vocabulary padding is cut off; tied embeddings come once, from stage 0.
    """
    hf_config = model.hf_config
    kv_heads = hf_config.num_kv_heads // topology.tp_size
    first_layer = first_layer_of(model)
    for name, parameter in model.named_parameters():
        if name == "output_layer.weight" and hf_config.tied_embeddings:
            continue
        rule = rule_for(name, first_layer, hf_config)
        parts = split_parts(parameter.detach(), rule.fuse, hf_config, kv_heads)
        for hf_name, part in zip(rule.hf, parts, strict=True):
            whole = part if rule.cut_dim is None else _gather(part, rule.cut_dim, topology)
            yield hf_name, whole[: hf_config.vocab_size] if rule.is_vocab else whole


def _gather(part: Tensor, dim: int, topology: Topology) -> Tensor:
    """The parts of all tensor parallel ranks, joined along `dim`."""
    if topology.tp_size == 1:
        return part
    gathered = part.new_empty((topology.tp_size * part.size(0), *part.shape[1:]))
    dist.all_gather_into_tensor(gathered, part.contiguous(), group=topology.tp_group)
    return gathered if dim == 0 else torch.cat(gathered.chunk(topology.tp_size), dim=dim)


def save_hf(model: PolicyModel, topology: Topology, source_hf_dir: str | Path, out_dir: str | Path) -> None:
    """Writes a complete Hugging Face directory: weights, config, tokenizer and generation files.

    Collective over all ranks; everything is on disk when it returns. One weight file per pipeline stage with an index,
    or a single file without pipeline parallelism. Everything but weights is copied from `source_hf_dir`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    if topology.dp_rank == 0:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in iterate_hf_tensors(model, topology)}
        file_name = _file_name(topology)
        if topology.tp_rank == 0:
            # safetensors refuses tensors that share memory, so views of parameters are copied.
            save_file({name: _own(tensor) for name, tensor in tensors.items()}, out_dir / file_name, {"format": "pt"})
        entry = {name: (file_name, tensor.nbytes) for name, tensor in tensors.items()}
        entries: list[dict[str, tuple[str, int]]] = [{} for _ in range(topology.pp_size)]
        dist.all_gather_object(entries, entry, group=topology.pp_group)
        if topology.rank == 0:
            _copy_other_files(Path(source_hf_dir), out_dir, model.config.params_dtype)
            _write_index(entries, out_dir)
    dist.barrier()


def _own(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def _file_name(topology: Topology) -> str:
    if topology.pp_size == 1:
        return SINGLE_NAME
    return f"model-{topology.pp_rank + 1:05d}-of-{topology.pp_size:05d}.safetensors"


def _write_index(entries: list[dict[str, tuple[str, int]]], out_dir: Path) -> None:
    if len(entries) == 1:
        return
    merged = {name: value for entry in entries for name, value in entry.items()}
    index = {
        "metadata": {"total_size": sum(size for _, size in merged.values())},
        "weight_map": {name: file_name for name, (file_name, _) in sorted(merged.items())},
    }
    (out_dir / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _copy_other_files(source: Path, out_dir: Path, dtype: torch.dtype) -> None:
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(path, out_dir / path.name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        if key in config:  # the weights are written in the dtype of training, whatever the source's was
            config[key] = str(dtype).removeprefix("torch.")
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
