"""Hugging Face weights: loaded into this rank's part of the model, gathered whole again, and written.

Loading reads only the slices that the rank needs; gathering gives each tensor under its Hugging Face name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from megatron_ext.checkpoint.files import copy_file
from megatron_ext.hf.config import HFConfig
from megatron_ext.hf.files import HFCheckpoint
from megatron_ext.hf.mapping import (
    Rule,
    expert_of,
    fuse_parts,
    hf_shapes,
    rank_range,
    rule_for,
    split_parts,
    stacked_source,
    with_expert,
)
from megatron_ext.hf.weight_files import INDEX_NAME, SINGLE_NAME, saved_dtype
from megatron_ext.model.policy_model import PolicyModel, first_expert_of, first_layer_of
from megatron_ext.parallel.topology import Topology


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


WEIGHT_SUFFIXES = (".safetensors", ".partial", ".bin", ".pt", ".pth", ".gguf", ".index.json")
"""Files of the source directory that hold or list weights, and so are not copied."""
FLOAT_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@torch.no_grad()
def iterate_hf_tensors(model: PolicyModel, topology: Topology) -> Iterator[tuple[str, Tensor]]:
    """Name and full tensor of every weight of this pipeline stage or chunk, one at a time, in the dtype of training.

    Collective over the tensor parallel group and, with experts, over the expert group: their ranks must iterate
    together to the end, and all get all tensors. Values are the bits of the parameters. Vocabulary padding is cut off;
    tied embeddings come once, from stage 0; experts come one by one.
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
            if rule.is_expert:
                yield from _gather_experts(hf_name, part, rule, hf_config, topology)
                continue
            whole = part if rule.cut_dim is None else _join(_gather(part, topology.tp_group), rule.cut_dim)
            yield hf_name, whole[: hf_config.vocab_size] if rule.is_vocab else whole


def _gather_experts(
    hf_name: str, part: Tensor, rule: Rule, hf_config: HFConfig, topology: Topology
) -> Iterator[tuple[str, Tensor]]:
    """The same local expert of every expert parallel rank; `hf_name` is of the first rank's."""
    assert hf_config.moe is not None and rule.cut_dim is not None
    experts_per_rank = hf_config.moe.num_experts // topology.ep_size
    first = expert_of(hf_name)
    parts = _gather(part, topology.expert_group)
    for ep_rank in range(topology.ep_size):
        mine = parts[ep_rank * topology.etp_size : (ep_rank + 1) * topology.etp_size]
        yield with_expert(hf_name, first + ep_rank * experts_per_rank), _join(mine, rule.cut_dim)


def _gather(part: Tensor, group: dist.ProcessGroup) -> list[Tensor]:
    """The parts of all ranks of `group`, in their order."""
    size = dist.get_world_size(group)
    if size == 1:
        return [part]
    gathered = part.new_empty((size * part.size(0), *part.shape[1:]))
    dist.all_gather_into_tensor(gathered, part.contiguous(), group=group)
    return list(gathered.chunk(size))


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def save_hf(
    chunks: Sequence[PolicyModel],
    topology: Topology,
    source_hf_dir: str | Path,
    out_dir: str | Path,
    max_file_bytes: int = 4 * 2**30,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a complete Hugging Face directory: weights, config, tokenizer and generation files.

    `chunks` are what this stage holds: one, or those of a virtual pipeline. Weights are written in `dtype`, without it
    in that of the model in `source_hf_dir`, whatever they were trained in.

    Collective over all ranks; everything is on disk when it returns. One rank of each pipeline stage writes files of up
    to `max_file_bytes` as the tensors come, and never holds more than one file's. Everything but weights is copied from
    `source_hf_dir`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    source = Path(source_hf_dir)
    dtype = dtype or source_dtype(source) or chunks[0].config.params_dtype
    writer = _StageWriter(out_dir, topology.pp_rank, max_file_bytes, dtype)
    is_writer = topology.tp_rank == 0 and topology.replica_rank == 0
    for chunk in chunks:
        for name, tensor in iterate_hf_tensors(chunk, topology):
            if is_writer:
                writer.add(name, tensor)
    if is_writer:
        writer.flush()
        stages: list[_StageFiles] = [[] for _ in range(topology.pp_size)]
        dist.all_gather_object(stages, writer.files, group=topology.pp_group)
        if topology.rank == 0:
            copy_other_files(source, out_dir)
            write_config(source, out_dir, chunks[0].hf_config, dtype)
            _name_files([file for files in stages for file in files], out_dir)
    dist.barrier()


_StageFiles = list[tuple[str, dict[str, int]]]
"""Temporary file names, and the bytes of each tensor in them."""


class _StageWriter:
    """Collects tensors and writes them to a file of their own whenever the next would not fit."""

    def __init__(self, out_dir: Path, pp_rank: int, max_file_bytes: int, dtype: torch.dtype) -> None:
        self.files: _StageFiles = []
        self._dtype = dtype
        self._out_dir, self._pp_rank, self._max_file_bytes = out_dir, pp_rank, max_file_bytes
        self._tensors: dict[str, Tensor] = {}
        self._bytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        num_bytes = tensor.numel() * self._dtype.itemsize
        if self._tensors and self._bytes + num_bytes > self._max_file_bytes:
            self.flush()
        # A copy: parts of a gathered tensor share memory, which safetensors refuses, and may change after this step.
        self._tensors[name] = tensor.to("cpu", self._dtype, copy=True, memory_format=torch.contiguous_format)
        self._bytes += num_bytes

    def flush(self) -> None:
        if not self._tensors:
            return
        file_name = f"stage-{self._pp_rank}-{len(self.files)}.safetensors.partial"
        save_file(self._tensors, self._out_dir / file_name, {"format": "pt"})
        self.files.append((file_name, {name: tensor.nbytes for name, tensor in self._tensors.items()}))
        self._tensors, self._bytes = {}, 0


def _name_files(files: _StageFiles, out_dir: Path) -> None:
    """Gives the files the names that Hugging Face readers look for, and an index if there are several."""
    for stale in [*out_dir.glob("model*.safetensors"), out_dir / INDEX_NAME]:
        stale.unlink(missing_ok=True)
    if len(files) == 1:
        (out_dir / files[0][0]).rename(out_dir / SINGLE_NAME)
        return
    weight_map, total_bytes = {}, 0
    for number, (temporary, sizes) in enumerate(files, start=1):
        file_name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (out_dir / temporary).rename(out_dir / file_name)
        weight_map.update(dict.fromkeys(sizes, file_name))
        total_bytes += sum(sizes.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (out_dir / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def source_dtype(hf_dir: Path) -> torch.dtype | None:
    """Dtype of the weights in `hf_dir`, or where there are none what its config.json says; None where neither tells."""
    config: dict[str, Any] = json.loads((hf_dir / "config.json").read_text())
    name = saved_dtype(hf_dir) or config.get("dtype") or config.get("torch_dtype")
    return FLOAT_DTYPES.get(str(name).removeprefix("torch."))


def copy_other_files(source: Path, out_dir: Path) -> None:
    """Tokenizer, generation settings and the rest of a Hugging Face directory: all but weights, and nothing linked from
    elsewhere."""
    for path in source.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHT_SUFFIXES):
            copy_file(path, out_dir / path.name)


def write_config(source: Path, out_dir: Path, hf_config: HFConfig, dtype: torch.dtype) -> None:
    """config.json of `source`, with the dtype of these weights, and whether embedding and output projection are one.

    Both may differ from what the source says, see `read_model_config`.
    """
    config: dict[str, Any] = json.loads((source / "config.json").read_text())
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    config[key] = str(dtype).removeprefix("torch.")
    if hf_config.tied_embeddings != config.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = hf_config.tied_embeddings
    (out_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n")
