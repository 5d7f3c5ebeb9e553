"""Checkpoints that a stranger prepared: a real one, with pickles planted in it and manifests made to fit."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_ext.checkpoint import commit


class Command:
    """A pickle that makes the file `marker` when it is loaded."""

    def __init__(self, marker: Path, how: Callable[..., Any] = os.system) -> None:
        self._how, self._marker = how, marker

    def __reduce__(self) -> tuple[Any, ...]:
        command = ["touch", str(self._marker)] if self._how is subprocess.call else f"touch {self._marker}"
        if self._how is eval:
            command = f"open({str(self._marker)!r}, 'w')"
        return self._how, (command,)


def fit_manifest(folder: Path) -> None:
    """Writes sizes and checksums of the changed files into the manifest, as a careful attacker does."""
    files = commit.measure_files(folder, commit.list_files(folder))
    commit.write_manifest(folder, files=files, description=commit.read_manifest(folder).description)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def change_metadata(folder: Path, change: Callable[[Any], Any]) -> None:
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def plant(folder: Path, part_of_key: str, content: bytes) -> None:
    """`content` in the place of the first entry with such a key ("=" before a whole one), at the end of its file."""

    def point(metadata: Any) -> None:
        is_it = part_of_key.removeprefix("=").__eq__ if part_of_key.startswith("=") else lambda key: part_of_key in key
        index = next(index for index in metadata.storage_data if is_it(index.fqn))
        info = metadata.storage_data[index]
        path = folder / info.relative_path
        info.offset, info.length = path.stat().st_size, len(content)
        path.write_bytes(path.read_bytes() + content)

    change_metadata(folder, point)


def build(whole: Path, root: Path, marker: Path) -> dict[str, Path]:
    """Every attack by name; none is damaged as far as its manifest tells."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(whole, root / name))

    evil = pickle.dumps(Command(marker))
    (copy("metadata_is_a_command") / ".metadata").write_bytes(evil)
    with_command = copy("metadata_holds_a_command")
    change_metadata(with_command, lambda metadata: setattr(metadata, "planner_data", Command(marker, eval)))
    fallback = copy("metadata_of_a_rank")
    (fallback / ".metadata").write_bytes(b"no pickle")
    (fallback / "__0.metadata").write_bytes(evil)
    planted = {
        "random_state": ("rng/", saved([Command(marker)])),
        "random_state_by_subprocess": ("rng/", saved({"cpu": Command(marker, subprocess.call)})),
        "random_state_of_old_format": ("rng/", saved([Command(marker)], _use_new_zipfile_serialization=False)),
        "random_state_is_a_script": ("rng/", script_archive()),
        "random_state_is_a_text": ("rng/", saved(["no state"])),
        "extra_state": ("linear_qkv._extra_state", saved([Command(marker)])),
        "extra_state_for_another_unpickler": (
            "_extra_state",
            saved([torch.frombuffer(bytearray(evil), dtype=torch.uint8)]),
        ),
        "weights": ("=decoder.final_layernorm.weight", saved(Command(marker))),
        "state_of_the_optimizer": ("optimizer.", saved(Command(marker, eval))),
        "weights_of_another_format": (
            "=decoder.final_layernorm.weight",
            saved(1, _use_new_zipfile_serialization=False),
        ),
        "weights_are_a_script": ("=decoder.final_layernorm.weight", script_archive()),
    }
    for name, (key, content) in planted.items():
        plant(copy(name), key, content)
    (copy("common_state") / "common.pt").write_bytes(saved({"optimizer": Command(marker)}))
    (copy("common_state_is_a_list") / "common.pt").write_bytes(saved([1]))
    (root / "secret").write_bytes(saved([{"cpu": torch.get_rng_state()}]))
    change_metadata(copy("file_of_no_name"), lambda metadata: change_first(metadata, relative_path=["a"]))
    change_metadata(copy("place_of_no_number"), lambda metadata: change_first(metadata, offset="0"))
    shapeless = copy("tensors_without_a_shape")
    change_metadata(shapeless, lambda metadata: [vars(it).update(size=5) for it in tensors_of(metadata)])
    whole_tensors = copy("tensors_without_parts")
    change_metadata(whole_tensors, lambda metadata: [vars(it).update(chunks=None) for it in tensors_of(metadata)])
    outside = copy("bytes_of_another_file")
    change_metadata(outside, lambda metadata: point_outside(metadata, "../secret"))
    (copy("unknown_backend") / "metadata.json").write_text('{"sharded_backend": "zarr", "common_backend": "torch"}')
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir()}
    for folder in folders.values():
        fit_manifest(folder)
        commit.check_sizes(folder)
        commit.check_contents(folder)
    return folders


def change_first(metadata: Any, **changes: Any) -> None:
    vars(next(iter(metadata.storage_data.values()))).update(changes)  # pyright: ignore[reportAttributeAccessIssue]


def tensors_of(metadata: Any) -> list[Any]:
    return [it for it in metadata.state_dict_metadata.values() if hasattr(it, "chunks")]


def point_outside(metadata: Any, path: str) -> None:
    index = next(index for index in metadata.storage_data if index.fqn.startswith("rng/"))
    metadata.storage_data[index].relative_path, metadata.storage_data[index].offset = path, 0


def script_archive() -> bytes:
    """TorchScript, which torch.load would hand to another loader."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), buffer)
    return buffer.getvalue()
