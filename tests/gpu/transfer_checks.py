"""Weights between two processes of one GPU, and NCCL with one rank."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from hybridflow.weights.digest import digests
from tests.gpu.models import device, one_rank
from tests.gpu.report import Report
from tests.gpu.sizes import Sizes

REPLY_S = 40.0


def shards_between_processes(report: Report, sizes: Sizes) -> None:
    """Flat buckets cut into parameters, as exact shards are handed over: CUDA IPC, or shared memory on a CPU.

    The receiver copies them out and answers with checksums; two buckets are used in turn, each written again after the
    receiver has synchronised its device. Checksums are those of exact shards.
    """
    context = torch.multiprocessing.get_context("fork" if sizes.is_dry else "spawn")
    offers, answers = context.Queue(), context.Queue()
    receiver = context.Process(target=receive, args=(offers, answers, sizes.num_shards))
    receiver.start()
    buckets = [make_bucket(sizes.shard_bytes) for _ in range(2)]
    seconds = 0.0
    for number in range(sizes.num_shards):
        bucket = buckets[number % 2]
        fill(bucket, number)
        expected = digests(cut(bucket))
        synchronise()
        started = time.perf_counter()
        offers.put(bucket)
        found = answers.get(timeout=REPLY_S)
        seconds += time.perf_counter() - started
        report.require(found == expected, f"bucket {number} arrived with other checksums: {found}, not {expected}")
    report.note(gb_per_s=sizes.num_shards * sizes.shard_bytes / seconds / 1e9, buckets=sizes.num_shards)
    changed = cut(buckets[0])[0].clone()
    changed[:2] = changed[:2].flip(0)
    report.require(
        digests([changed]) != digests(cut(buckets[0])[:1]), "the checksum does not see two bytes change places"
    )
    offers.put(None)
    receiver.join(REPLY_S)
    report.require(receiver.exitcode == 0, f"the receiver ended with {receiver.exitcode}")


def receive(offers: Any, answers: Any, count: int) -> None:
    """Takes buckets in until None comes, and answers each with the checksums of its own copies."""
    weights: list[Tensor] = []
    while (bucket := offers.get(timeout=REPLY_S)) is not None:
        parts = cut(bucket)
        weights = weights or [torch.empty_like(part) for part in parts]
        for weight, part in zip(weights, parts, strict=True):
            weight.copy_(part)
        synchronise()
        del bucket, parts
        answers.put(digests(weights))


def make_bucket(num_bytes: int) -> Tensor:
    bucket = torch.empty(num_bytes, dtype=torch.uint8, device=device())
    return bucket if bucket.is_cuda else bucket.share_memory_()


def fill(bucket: Tensor, number: int) -> None:
    """Other bytes in each round."""
    pattern = torch.arange(bucket.numel(), device=bucket.device, dtype=torch.int32)
    bucket.copy_((pattern * (2 * number + 3) + number) % 251)


def cut(bucket: Tensor) -> list[Tensor]:
    """A quarter, a half and the rest, as parameters of a layer differ in size."""
    quarter = bucket.numel() // 4
    return list(bucket.split([quarter, 2 * quarter, bucket.numel() - 3 * quarter]))


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def nccl_one_rank(report: Report, sizes: Sizes) -> None:
    """A group of one rank: collectives return what they were given; sums of a large tensor stay what they are."""
    import torch.distributed as dist

    with one_rank() as topology:
        report.note(backend=dist.get_backend())
        wanted = "nccl" if device().type == "cuda" else "gloo"
        report.require(dist.get_backend() == wanted, f"the group's backend is {dist.get_backend()}")
        values = torch.arange(1_000, dtype=torch.float32, device=topology.device)
        summed, gathered = values.clone(), torch.empty_like(values)
        dist.all_reduce(summed)
        dist.all_gather_into_tensor(gathered, values)
        scattered = torch.empty_like(values)
        dist.reduce_scatter_tensor(scattered, values.clone())
        objects: list[Any] = [None]
        dist.all_gather_object(objects, {"rank": 0})
        dist.barrier()
        for name, found in (("all_reduce", summed), ("all_gather", gathered), ("reduce_scatter", scattered)):
            report.require(torch.equal(found, values), f"{name} of one rank changed the values")
        report.require(objects == [{"rank": 0}], f"all_gather_object gave {objects}")
