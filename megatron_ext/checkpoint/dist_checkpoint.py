"""Saves and restores weights, optimizer and random state through Megatron's distributed checkpoints.

Restoring at the same layout continues bit for bit. Weights and optimizer state can be restored at any other layout.

    <checkpoint>/
        *.distcp, .metadata, common.pt, metadata.json      Megatron's files
        hf/                                                config and tokenizer of the model, without weights
        manifest.json                                      size and checksum of each file; layout and model

A checkpoint appears in one rename when all of it is on the disk (commit.py). With `background=True` the state is
copied, training goes on, and processes forked for the purpose write the copy; it appears when `finish` finds them done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ext import platform
from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError, FileEntry
from megatron_ext.checkpoint.hf_weights import copy_other_files, source_dtype, write_config
from megatron_ext.checkpoint.identity import DTYPE_KEY, MODEL_KEY, check_model, describe_model
from megatron_ext.checkpoint.reader import check_objects, load_state
from megatron_ext.checkpoint.writer_processes import prepare_results_queue, writers_end_with_parent
from megatron_ext.model.policy_model import PolicyModel
from megatron_ext.parallel.topology import Layout, Topology

platform.install()

from megatron.core import dist_checkpointing  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedObject  # noqa: E402
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue  # noqa: E402
from megatron.core.optimizer import MegatronOptimizer  # noqa: E402

HF_FOLDER = "hf"
LAYOUT_KEY = "layout"
GRID = ("tp", "pp", "dp", "cp", "vpp", "ep", "etp")
"""Keys of the layout that decide what a rank is."""


class CheckpointWriter:
    """Saves checkpoints of one model and optimizer, one at a time. Every method is collective over all ranks."""

    def __init__(
        self,
        chunks: Sequence[PolicyModel],
        optimizer: MegatronOptimizer,
        topology: Topology,
        layout: Layout,
        hf_dir: str | Path,
        *,
        persistent_worker: bool = False,
    ) -> None:
        """`chunks` are this rank's parts of the model: one, or several with virtual pipeline stages.

        `persistent_worker` keeps one process for all background saves. ValueError without CUDA: upstream's worker
        divides by the number of devices, dies, and the rank waits for it for ever (Megatron-Core 0.16.1). Whether it
        still does says test_a_persistent_background_worker_is_refused_without_a_device in tests/dist_cpu.
        """
        if persistent_worker and not topology.computes_on.has_cuda:
            raise ValueError(
                "persistent_worker = true: Megatron's persistent writer never answers on a machine without CUDA; "
                "leave it false"
            )
        self._chunks = chunks
        self._optimizer = optimizer
        self._topology = topology
        self._layout = layout
        self._hf_dir = Path(hf_dir)
        self._queue = AsyncCallsQueue(persistent=persistent_worker)
        self._pending: tuple[Path, Path] | None = None
        """Folder being written and its place-to-be, while a background save is under way."""

    def save(self, target: str | Path, *, background: bool = False) -> None:
        """Saves to the folder `target`, replacing what is there.

        In the foreground it is complete on return. In the background it appears during a later call of `finish`, or of
        `save`, which finishes the earlier one first. Raises OSError on every rank if the disk refuses on one; what was
        there before is then untouched.
        """
        self.finish()
        target = Path(target)
        folder = Path(_from_rank0(self._topology, lambda: str(commit.begin(target))))
        state = _sharded_state(self._chunks, self._optimizer, self._topology, is_loading=False)
        state["rng"] = _rng_shard(self._topology)
        metadata = {**_sharding(self._topology), LAYOUT_KEY: dataclasses.asdict(self._layout)}
        metadata.pop("dp_cp_group")  # a process group cannot be saved
        prepare_results_queue()
        with writers_end_with_parent():
            request = dist_checkpointing.save(
                state, str(folder), content_metadata=metadata, async_sharded_save=background
            )
            self._pending = (folder, target)
            if request is not None:
                self._queue.schedule_async_request(request)
        if request is None:
            self._commit()

    def finish(self, *, wait: bool = True) -> bool:
        """Commits the background save under way if it is written on all ranks; whether none is under way any more.

        With `wait` it is, on return. Raises what went wrong in writing.
        """
        if self._pending is None:
            return True
        try:
            self._queue.maybe_finalize_async_calls(blocking=wait)
        except Exception:
            self._pending = None
            raise
        if self._queue.get_num_unfinalized_calls():
            return False
        self._commit()
        return True

    def close(self) -> None:
        """Finishes the save under way and ends the writer process, if there is one."""
        self.finish()
        self._queue.close()

    def _commit(self) -> None:
        """Every rank flushes and checks its share of the files, and rank 0 commits them."""
        assert self._pending is not None
        folder, target = self._pending
        self._pending = None
        dist.barrier()
        names: list[str] = _from_rank0(self._topology, lambda: self._complete(folder))
        share = names[self._topology.rank :: dist.get_world_size()]
        parts = _on_every_rank(lambda: commit.measure_files(folder, share))
        files: dict[str, FileEntry] = {name: entry for part in parts for name, entry in part.items()}
        description = {
            LAYOUT_KEY: dataclasses.asdict(self._layout),
            MODEL_KEY: describe_model(self._chunks[0].hf_config),
            DTYPE_KEY: str(self._chunks[0].config.params_dtype).removeprefix("torch."),
        }
        _from_rank0(self._topology, lambda: commit.commit(folder, target, files=files, description=description))

    def _complete(self, folder: Path) -> list[str]:
        """Adds what Megatron does not write; returns the names of all files."""
        model = self._chunks[0]
        (folder / HF_FOLDER).mkdir()
        copy_other_files(self._hf_dir, folder / HF_FOLDER)
        dtype = source_dtype(self._hf_dir) or model.config.params_dtype
        write_config(self._hf_dir, folder / HF_FOLDER, model.hf_config, dtype)
        return commit.list_files(folder)


def load_checkpoint(
    directory: str | Path,
    chunks: Sequence[PolicyModel],
    optimizer: MegatronOptimizer | None,
    topology: Topology,
    layout: Layout,
) -> None:
    """Restores what `CheckpointWriter.save` wrote; without `optimizer` only the weights. Collective over all ranks.

    At another layout the random state stays as it is: it belongs to ranks that no longer exist. Everything is checked
    before anything is changed, and all ranks raise alike: BrokenCheckpointError for a folder that is no checkpoint, of
    which a file is missing or changed, or that would run code (reader.py); WrongModelError for a checkpoint
    of another model.
    """
    saved = verify_checkpoint(directory, topology)
    check_model(saved[MODEL_KEY], describe_model(chunks[0].hf_config), directory)
    present = dataclasses.asdict(layout)
    same_layout = all(saved[LAYOUT_KEY].get(key) == present[key] for key in GRID)
    state = _sharded_state(chunks, optimizer, topology, is_loading=True)
    if same_layout and optimizer is not None:
        state["rng"] = _rng_shard(topology)
    loaded = load_state(state, directory)
    try:
        for key, chunk in zip(_chunk_keys(chunks), chunks, strict=True):
            chunk.load_state_dict(loaded[key])
        if optimizer is not None:
            optimizer.load_state_dict(loaded["optimizer"])
        if "rng" in loaded:
            torch.set_rng_state(loaded["rng"]["cpu"])
            if topology.device.type == "cuda":
                torch.cuda.set_rng_state(loaded["rng"]["cuda"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise BrokenCheckpointError(
            f"{directory} holds another state than this program writes ({error!r}): use a checkpoint that it wrote"
        ) from error
    dist.barrier()


def verify_checkpoint(directory: str | Path, topology: Topology) -> dict[str, Any]:
    """The description that a checkpoint's writer gave, once every byte was checked, each by one of the ranks."""

    def check_share() -> dict[str, Any]:
        _check_files(directory, topology)
        check_objects(directory, part=topology.rank, num_parts=dist.get_world_size())
        return commit.read_manifest(directory).description

    return _on_every_rank(check_share)[0]


def verify_folder(directory: str | Path, topology: Topology) -> None:
    """The same for a folder of other files: every byte is as its manifest says. Collective over all ranks."""
    _on_every_rank(lambda: _check_files(directory, topology))


def _check_files(directory: str | Path, topology: Topology) -> None:
    commit.check_sizes(directory)
    commit.check_contents(directory, part=topology.rank, num_parts=dist.get_world_size())


def _from_rank0(topology: Topology, function: Callable[[], Any]) -> Any:
    """The result of `function` on rank 0, on every rank; its exception too."""
    message: list[Any] = [_outcome(function) if topology.rank == 0 else None]
    dist.broadcast_object_list(message, src=0)
    return _result(message[0])


def _on_every_rank(function: Callable[[], Any]) -> list[Any]:
    """The results of `function` on each rank, on every rank; the first exception too."""
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, _outcome(function))
    return [_result(outcome) for outcome in outcomes]


def _outcome(function: Callable[[], Any]) -> Any:
    """The result, or the exception as a value: a rank that raised alone would leave the others waiting."""
    try:
        return function()
    except (OSError, ValueError) as error:
        return error


def _result(outcome: Any) -> Any:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _chunk_keys(chunks: Sequence[PolicyModel]) -> list[str]:
    return ["model"] if len(chunks) == 1 else [f"model{index}" for index in range(len(chunks))]


def _sharded_state(
    chunks: Sequence[PolicyModel], optimizer: MegatronOptimizer | None, topology: Topology, is_loading: bool
) -> dict[str, Any]:
    sharding = _sharding(topology)
    state: dict[str, Any] = {
        key: chunk.sharded_state_dict(metadata=sharding) for key, chunk in zip(_chunk_keys(chunks), chunks, strict=True)
    }
    if optimizer is not None:
        weights = state["model"] if len(chunks) == 1 else dict(state)
        state["optimizer"] = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=sharding)
    return state


def _sharding(topology: Topology) -> dict[str, Any]:
    """How Megatron should lay the state out: optimizer state by parameter, so that any layout can read it."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": topology.dp_group,
    }


def _rng_shard(topology: Topology) -> ShardedObject:
    """This rank's generators; none of them is shared with another rank."""
    state = {"cpu": torch.get_rng_state()}
    if topology.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state()
    return ShardedObject("rng", state, (dist.get_world_size(),), (topology.rank,))
