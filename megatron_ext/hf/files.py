"""The safetensors files of a Hugging Face directory: what they hold, and whether it is what the config implies.

No Megatron here: a driver asks before any rank is there.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_ext.hf.config import HFConfig, read_hf_config
from megatron_ext.hf.mapping import expected_shapes, stacked_source
from megatron_ext.hf.weight_files import (
    INDEX_NAME,
    WeightsError,
    has_own_head,
    tensor_names,
    weight_map,
)

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Names of safetensors. Others hold quantised values, which need scales that nobody here applies."""


def read_model_config(hf_dir: str | Path) -> HFConfig:
    """The config as the weights beside it make it: embeddings whose files hold another output projection are not tied.

    So does transformers. Without weights there what the config says. Raises as `read_hf_config`, WeightsError for files
    that cannot be read.
    """
    hf_config = read_hf_config(hf_dir)
    if hf_config.tied_embeddings and has_own_head(Path(hf_dir)):
        return dataclasses.replace(hf_config, tied_embeddings=False)
    return hf_config


def check_hf_weights(hf_dir: str | Path, hf_config: HFConfig) -> None:
    """Finds out from the headers of the files alone whether loading can succeed; reads no weights.

    Raises WeightsError naming the tensor and the file or directory, FileNotFoundError without safetensors.
    """
    with HFCheckpoint(Path(hf_dir)) as checkpoint:
        checkpoint.refuse_unused(hf_config)
        for name, shape in expected_shapes(hf_config).items():
            stacked = stacked_source(name, hf_config) if name not in checkpoint.names else None
            if stacked is not None and stacked.name in checkpoint.names:
                name, shape = stacked.name, stacked.shape
            checkpoint.check(name, shape)


class HFCheckpoint:
    """The tensors of a directory of safetensors files. A context manager: files are open inside."""

    def __init__(self, hf_dir: Path) -> None:
        """Raises FileNotFoundError when there are no safetensors, WeightsError when they cannot be read."""
        self.hf_dir = hf_dir
        self._open_files = ExitStack()
        self._handles: dict[str, Any] = {}
        self._names_in: dict[str, frozenset[str]] = {}
        self._file_of = weight_map(hf_dir)
        self.names = self._file_of.keys()
        """Names that the directory says it has."""

    def __enter__(self) -> HFCheckpoint:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open_files.close()

    def read(self, name: str, shape: tuple[int, ...], part: tuple[slice | int, ...]) -> Tensor:
        """Entries `part` of tensor `name`, whose full shape must be `shape`; the rest is not read."""
        return self.check(name, shape)[part]

    def check(self, name: str, shape: tuple[int, ...]) -> Any:
        """The tensor, unread, after its shape and dtype were found right in the header; else WeightsError."""
        tensor_slice = self._handle(name).get_slice(name)
        found = tuple(tensor_slice.get_shape())
        if found != shape:
            raise WeightsError(
                f"{name} in {self.hf_dir} has shape {list(found)}, the config implies {list(shape)}; give the "
                "config.json that belongs to the weights"
            )
        if tensor_slice.get_dtype() not in FLOAT_DTYPES:
            raise WeightsError(
                f"{name} in {self.hf_dir} has dtype {tensor_slice.get_dtype()}, it must be one of "
                f"{', '.join(FLOAT_DTYPES)}; give weights that are not quantised"
            )
        return tensor_slice

    def refuse_unused(self, hf_config: HFConfig) -> None:
        """Raises WeightsError for a tensor that the model would silently leave out, such as a bias it does not have.

        And for one that a file holds and the index has elsewhere, or not at all: others read all that a file holds.
        A tied lm_head and the rotary frequencies of old checkpoints are no loss.
        """
        for file_name in sorted(set(self._file_of.values())):
            for name in tensor_names(self.hf_dir / file_name):
                if self._file_of.get(name) != file_name:
                    listed = f"lists it in {self._file_of[name]}" if name in self._file_of else "does not list it"
                    raise WeightsError(
                        f"{name} is in {file_name} of {self.hf_dir}, and {INDEX_NAME} {listed}; copy the index and all "
                        "files that it names again"
                    )
        expected = set(expected_shapes(hf_config))
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
            raise WeightsError(
                f"{name} is not in {self.hf_dir}, but the model needs it; copy all weight files, or give the "
                "config.json that belongs to them"
            )
        handle = self._open(file_name)
        if name not in self._names_in[file_name]:
            raise WeightsError(
                f"{name} is not in {file_name} of {self.hf_dir}, where {INDEX_NAME} has it; copy the file again"
            )
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
