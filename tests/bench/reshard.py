"""Speed, bytes and memory of exact resharding on this machine; prints one JSON line.

    python tests/bench/reshard.py --layers 4 --shrink 4 --tp 2 --rollout 1 --bucket-mib 48

Train ranks (gloo) hold the parameters that the plan says, random; beside each rank of an engine a process copies every
bucket into parameters of its own, as SGLang does, while the next is assembled. Nothing else: no Megatron, no SGLang.
Updates and the comparison alternate, each several times, and the best of each counts: other load on the machine only
ever adds time.

    bytes_moved         what the train ranks wrote for engines, by their own count
    plan_bytes          what `hybridflow reshard` foretells for it
    gb_per_s            bytes_moved / time of an update without checksums (10^9 bytes)
    memcpy_gb_per_s     the same bytes from one process to another: copied into shared memory, and out of it, in pieces
                        of a bucket, one being filled while the other is emptied
    ratio               of the two
    checked_gb_per_s    an update with a CRC-32 of each parameter on both sides, as a run on a CPU does it
    crc_gb_per_s        a CRC-32, one thread
    digest_gb_per_s     the digest of the same bytes, which takes its place on a GPU (weights/digest.py)
    peak_extra_mib      most resident memory of a train rank beside its parameters; every bucket that it touches counts
    gather_bytes        what the ranks receive where everyone gathers everything, run on the same parameters
    gather_ratio        gather_bytes / received_bytes, what ranks receive from others by the plan
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.distributed as dist

from hybridflow.errors import ConfigError
from hybridflow.weights.digest import digest
from hybridflow.weights.manifest import TensorEntry, compute_crc
from hybridflow.weights.reshard import executor as executor_module
from hybridflow.weights.reshard.buffers import SharedBuffer, map_buffer
from hybridflow.weights.reshard.executor import ReshardExecutor
from hybridflow.weights.reshard.report import compute_traffic
from hybridflow.weights.reshard.rollout_layout import RolloutLayout
from hybridflow.weights.reshard.schedule import Schedule
from hybridflow.weights.reshard.settings import ReshardSettings, engine_slots
from hybridflow.weights.reshard.shard_bucket import ShardBucket, cut_buffer, read_bucket
from hybridflow.weights.reshard.train_layout import num_parts, part_of
from hybridflow.weights.reshard.train_shards import train_shards
from megatron_ext.hf.config import HFConfig, read_hf_config
from megatron_ext.parallel.layout import Layout
from tests.ports import free_port

DTYPE = torch.bfloat16
HASHED_BYTES = 64 * 2**20
ROOT = Path(__file__).parents[2]


def main() -> None:
    options = parse_arguments()
    train = Layout(tp=options.tp, pp=options.pp, sequence_parallel=options.tp > 1)
    config = small_config(options)
    settings = ReshardSettings(
        RolloutLayout(options.rollout),
        engine_slots(options.engines, options.rollout),
        int(options.bucket_mib * 2**20),
        gpus_per_node=train.world_size,
    )
    try:
        schedule = settings.schedule(config, train, DTYPE.itemsize)
    except ConfigError as error:
        sys.exit(f"--shrink {options.shrink} --tp {options.tp} --pp {options.pp} --rollout {options.rollout}: {error}")
    traffic = compute_traffic(schedule.plan, schedule)
    plan_bytes = sum(rank.device_bytes + rank.moved_bytes for rank in traffic)
    results = run(train, config, settings, options)
    measured = [result for result in results if result is not None]
    update_s = min(max(times) for times in zip(*(r["plain_s"] for r in measured), strict=True))
    checked_s = min(max(times) for times in zip(*(r["checked_s"] for r in measured), strict=True))
    copy_s = min(measured[0]["memcpy_s"])
    moved = sum(result["moved"] for result in measured)
    received, gathered = sum(rank.moved_bytes for rank in traffic), sum(result["gathered"] for result in measured)
    rate, copy_rate = moved / update_s / 1e9, moved / copy_s / 1e9
    print(
        json.dumps(
            {
                "bytes_moved": moved,
                "plan_bytes": plan_bytes,
                "gb_per_s": round(rate, 3),
                "memcpy_gb_per_s": round(copy_rate, 3),
                "ratio": round(rate / copy_rate, 3),
                "checked_gb_per_s": round(moved / checked_s / 1e9, 3),
                **checksum_rates(),
                "peak_extra_mib": round(max(result["extra_mib"] for result in measured), 1),
                "bucket_mib": options.bucket_mib,
                "rounds": len(schedule.rounds),
                "received_bytes": received,
                "gather_bytes": gathered,
                "gather_ratio": round(gathered / received, 2) if received else None,
            }
        )
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "configs/models/r1-distill-qwen-32b")
    parser.add_argument("--layers", type=int, default=4, help="layers of the model that take part")
    parser.add_argument("--shrink", type=int, default=4, help="divides hidden size, width, heads and vocabulary")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--rollout", type=int, default=1, help="ranks of an engine")
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--bucket-mib", type=float, default=48)
    parser.add_argument("--updates", type=int, default=5)
    return parser.parse_args()


def small_config(options: argparse.Namespace) -> HFConfig:
    config, by = read_hf_config(options.model), options.shrink
    if by > config.num_kv_heads:
        sys.exit(f"--shrink {by}: no key-value head would be left; at most {config.num_kv_heads}")
    return dataclasses.replace(
        config,
        num_layers=options.layers,
        hidden_size=config.hidden_size // by,
        ffn_hidden_size=config.ffn_hidden_size // by,
        num_heads=config.num_heads // by,
        num_kv_heads=config.num_kv_heads // by,
        vocab_size=config.vocab_size // (4 * by),  # fewer layers need fewer words, or little else would be moved
    )


def run(
    train: Layout, config: HFConfig, settings: ReshardSettings, options: argparse.Namespace
) -> list[dict[str, Any] | None]:
    """The measurements of each train rank."""
    context = multiprocessing.get_context("spawn")
    port = free_port()
    together = context.Barrier(train.world_size)
    pipes, processes = [], []
    for rank in range(train.world_size):
        ours, theirs = context.Pipe()
        args = (theirs, rank, port, together, train, config, settings, options.updates)
        processes.append(context.Process(target=train_rank, args=args))
        processes[-1].start()
        pipes.append(ours)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join(timeout=30)
    return results


def train_rank(
    pipe: Connection,
    rank: int,
    port: int,
    together: Barrier,
    train: Layout,
    config: HFConfig,
    settings: ReshardSettings,
    updates: int,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=train.world_size)
    schedule = settings.schedule(config, train, DTYPE.itemsize)
    parameters = draw_parameters(schedule, rank)
    executor = ReshardExecutor(schedule, rank, DTYPE)
    reader = Reader(schedule, rank) if rank in schedule.plan.tp_rank_of else None
    result: dict[str, Any] = {"plain_s": [], "checked_s": [], "memcpy_s": [], "extra_mib": 0.0}
    describe = executor_module.describe_shards
    memcpy = Memcpy(reader, settings.bucket_bytes) if rank == 0 else None
    before = forget_peak_mib()
    for number in range(updates + 1):
        executor.sent_bytes.clear()
        executor_module.describe_shards = without_checksums
        plain_s = timed(together, lambda: update(executor, reader, parameters, checked=False))
        result["moved"] = sum(executor.sent_bytes.values())
        executor_module.describe_shards = describe
        checked_s = timed(together, lambda: update(executor, reader, parameters, checked=True))
        if not number:
            result["extra_mib"] = peak_mib() - before
        moved = torch.tensor(result["moved"])
        dist.all_reduce(moved)
        memcpy_s = timed(together, functools.partial(memcpy.run, int(moved)) if memcpy else lambda: None)
        if number:  # the first touches all pages
            result["plain_s"].append(plain_s)
            result["checked_s"].append(checked_s)
            result["memcpy_s"].append(memcpy_s)
    result["gathered"] = gather_everything(schedule, rank, parameters)
    if reader:
        reader.close()
    together.wait()
    executor.close()
    pipe.send(result)
    dist.destroy_process_group()


def without_checksums(named: list[tuple[str, torch.Tensor]], *, on_host: bool) -> list[TensorEntry]:
    return [TensorEntry(name, tuple(tensor.shape), str(DTYPE).removeprefix("torch."), 0) for name, tensor in named]


def checksum_rates() -> dict[str, float]:
    """GB per second of CPU time of one thread, the best of several."""
    torch.set_num_threads(1)
    tensor = torch.randn(HASHED_BYTES // 2, generator=torch.Generator().manual_seed(0)).to(DTYPE)
    rates = {}
    for name, work in (("crc", functools.partial(compute_crc, tensor)), ("digest", functools.partial(digest, tensor))):
        seconds = []
        for _ in range(7):
            start = time.process_time()
            work()
            seconds.append(time.process_time() - start)
        rates[f"{name}_gb_per_s"] = round(HASHED_BYTES / min(seconds) / 1e9, 3)
    return rates


def timed(together: Barrier, work: Callable[[], None]) -> float:
    together.wait()
    start = time.monotonic()
    work()
    return time.monotonic() - start


def update(
    executor: ReshardExecutor,
    reader: Reader | None,
    parameters: dict[tuple[int, str], torch.Tensor],
    *,
    checked: bool,
) -> None:
    """Round k + 2 waits for all readers of round k, as in a run."""
    for number in range(executor.num_rounds):
        if number > 1:
            if reader:
                reader.wait()
            dist.barrier()
        bucket = executor.assemble(number, 0, parameters)
        if reader and bucket:
            reader.read(bucket, checked)
    for _ in range(min(2, executor.num_rounds)):
        if reader:
            reader.wait()


def forget_peak_mib() -> float:
    """Lets `peak_mib` start again; returns the resident memory now."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_mib("VmRSS")


def peak_mib() -> float:
    """Most resident memory of this process, its and other ranks' buckets as far as it has touched them included."""
    return status_mib("VmHWM")


def status_mib(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def draw_parameters(schedule: Schedule, rank: int) -> dict[tuple[int, str], torch.Tensor]:
    plan = schedule.plan
    stage = rank // (plan.world_size // plan.train.pp)
    parameters = {}
    for block in plan.blocks:
        if stage in block.stages:
            home = block.home(stage)
            for part, shard in train_shards(block.kind, plan.hf_config, plan.train):
                if part_of(plan.train, rank, part.cut) == part:
                    parameters[home.chunk, home.prefix + shard.name] = torch.randn(shard.shape).to(DTYPE)
    return parameters


def gather_everything(schedule: Schedule, rank: int, parameters: dict[tuple[int, str], torch.Tensor]) -> int:
    """The stage that holds a parameter broadcasts its shards to the same ranks of the other stages, then each tensor
    parallel group gathers them (`weights/reshard/report.py`); returns the bytes that this rank received."""
    plan, train = schedule.plan, schedule.plan.train
    per_stage = plan.world_size // train.pp
    stage, within = divmod(rank, per_stage)
    columns = [dist.new_group(list(range(start, plan.world_size, per_stage))) for start in range(per_stage)]
    groups = [dist.new_group(list(range(start, start + train.tp))) for start in range(0, plan.world_size, train.tp)]
    received = 0
    for block in plan.blocks:
        owner = block.stages[0]
        home = block.home(owner)
        for part, shard in train_shards(block.kind, plan.hf_config, train):
            if part_of(train, rank, part.cut) != part:
                continue
            if stage == owner:
                parameter = parameters[home.chunk, home.prefix + shard.name]
            else:
                parameter = torch.empty(shard.shape, dtype=DTYPE)
                received += parameter.numel() * DTYPE.itemsize
            dist.broadcast(parameter, owner * per_stage + within, group=columns[within])
            if num_parts(train, part.cut) > 1:
                parts = [torch.empty_like(parameter) for _ in range(train.tp)]
                dist.all_gather(parts, parameter, group=groups[rank // train.tp])
                received += (train.tp - 1) * parameter.numel() * DTYPE.itemsize
    return received


class Reader:
    """A process that copies buckets into parameters of its own, one after the other."""

    def __init__(self, schedule: Schedule, rank: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve_reader, args=(theirs, schedule, rank), daemon=True)
        self._process.start()

    def read(self, bucket: ShardBucket, checked: bool) -> None:
        self._pipe.send((bucket, checked))

    def copy(self, handle: Any, num_bytes: int) -> None:
        self._pipe.send((handle, num_bytes))

    def wait(self) -> None:
        self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(timeout=30)


def serve_reader(pipe: Connection, schedule: Schedule, rank: int) -> None:
    torch.set_num_threads(1)
    parameters = {
        name: torch.zeros(shape, dtype=DTYPE)
        for number in range(len(schedule.rounds))
        for name, shape in schedule.parameters(number, rank)
    }
    mapped: dict[Any, torch.Tensor] = {}
    plain: torch.Tensor | None = None
    while (work := pipe.recv()) is not None:
        what, how = work
        handle = what.handle if isinstance(what, ShardBucket) else what
        if handle not in mapped:
            mapped[handle] = map_buffer(handle)
        if isinstance(what, ShardBucket):
            shapes = [(entry.name, entry.shape) for entry in what.entries]
            named = read_bucket(what, mapped[handle]) if how else cut_buffer(mapped[handle], shapes, DTYPE)
            for name, tensor in named:
                parameters[name].copy_(tensor)
        else:
            if plain is None or len(plain) < handle.num_bytes:
                plain = torch.zeros(handle.num_bytes, dtype=torch.uint8)
            plain[:how].copy_(mapped[handle][:how])
        pipe.send(None)


class Memcpy:
    """Plain copies from this process to a reader's, through two pieces of shared memory in turn."""

    def __init__(self, reader: Reader | None, piece_bytes: int) -> None:
        assert reader is not None, "rank 0 has an engine's rank beside it"
        self._reader = reader
        self._pieces = [SharedBuffer(piece_bytes) for _ in range(2)]
        self._source_B = torch.ones(piece_bytes * 4, dtype=torch.uint8)

    def run(self, num_bytes: int) -> None:
        size = self._pieces[0].handle.num_bytes
        waiting = 0
        for number, start in enumerate(range(0, num_bytes, size)):
            count = min(size, num_bytes - start)
            if waiting == 2:
                self._reader.wait()
                waiting -= 1
            piece, place = self._pieces[number % 2], number % 4 * size
            piece.bytes_B[:count].copy_(self._source_B[place : place + count])
            self._reader.copy(piece.handle, count)
            waiting += 1
        for _ in range(waiting):
            self._reader.wait()


if __name__ == "__main__":
    main()
