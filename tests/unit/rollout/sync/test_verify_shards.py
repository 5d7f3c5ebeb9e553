"""SGLang's checksums as an engine reads them. The shards themselves: tests/dist_cpu, tests/stack_cpu."""

from __future__ import annotations

import msgspec
import pytest
import torch

from hybridflow.errors import WeightSyncError
from hybridflow.rollout.sync.verify import ShardChecksums
from hybridflow.weights.manifest import describe_tensor
from hybridflow.weights.reshard.buffers import BufferHandle, SharedBuffer, map_buffer, this_machine
from hybridflow.weights.reshard.shard_bucket import (
    SAMPLE_PERIOD,
    ShardBucket,
    Verify,
    check_engines_alike,
    cut_buffer,
    read_bucket,
)

NAMES = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(40)]


def bucket(names: list[str], engine: int = 0, value: float = 1.0, handle: BufferHandle | None = None) -> ShardBucket:
    tensors = [torch.full((2, 3), value) for _ in names]
    return ShardBucket(
        version=4,
        number=0,
        rank=2,
        engine=engine,
        tp_rank=0,
        entries=[describe_tensor(name, tensor) for name, tensor in zip(names, tensors, strict=True)],
        handle=handle or BufferHandle(this_machine(), 1, 1, 1),
    )


def load(sums: ShardChecksums, version: int) -> dict[str, str]:
    """Hands all names over; what SGLang would answer for those that it is asked for."""
    sums.begin()
    sums.note(msgspec.structs.replace(bucket(NAMES), version=version), lambda name: name[::-1])
    return {name: name[::-1] for name in NAMES if name not in sums.names_to_skip}


def verified(verify: Verify, versions: list[int]) -> list[set[str]]:
    sums = ShardChecksums(verify)
    sets = []
    for version in versions:
        found = load(sums, version)
        sets.append(set(found))
        sums.check(version, [found])
    return sets


def test_all_are_read_back_each_time() -> None:
    assert verified("all", [1, 2]) == [set(NAMES), set(NAMES)]


def test_none_asks_nothing() -> None:
    sums = ShardChecksums("none")
    assert load(sums, 1) == {}
    assert not sums.is_verifying


def test_a_sample_begins_with_all_and_comes_to_every_parameter() -> None:
    first, *others = verified("sample", list(range(SAMPLE_PERIOD + 1)))
    assert first == set(NAMES)
    assert all(len(found) <= 3 for found in others)
    assert set().union(*others) == set(NAMES)


def test_a_differing_parameter_is_named_with_its_ranks() -> None:
    sums = ShardChecksums("all")
    found = load(sums, 4)
    found[NAMES[7]] = "0"
    with pytest.raises(WeightSyncError, match=r"layers\.7\.mlp\S+ of rank 0 of the engine, from train worker 2 has"):
        sums.check(4, [found])


def test_a_parameter_that_nothing_was_sent_for_is_named() -> None:
    sums = ShardChecksums("all")
    found = load(sums, 4) | {"model.layers.0.extra": "1"}
    with pytest.raises(WeightSyncError, match=r"nothing was sent for, on rank 0: model\.layers\.0\.extra"):
        sums.check(4, [found])


def test_replicas_that_differ_are_named() -> None:
    with pytest.raises(WeightSyncError, match=r"layers\.0\.mlp\S+ differs between engine 0 .* and engine 1"):
        check_engines_alike([[bucket(NAMES)], [bucket(NAMES, engine=1, value=2.0)]])
    check_engines_alike([[bucket(NAMES)], [bucket(NAMES, engine=1)]])


def test_a_bucket_is_read_where_it_was_written_and_a_changed_byte_is_found() -> None:
    buffer = SharedBuffer(len(NAMES) * 24)
    sent = bucket(NAMES, handle=buffer.handle)
    shapes = [(entry.name, entry.shape) for entry in sent.entries]
    for _, tensor in cut_buffer(buffer.bytes_B, shapes, torch.float32):
        tensor.fill_(1.0)
    other = map_buffer(buffer.handle)
    assert [name for name, _ in read_bucket(sent, other)] == NAMES
    buffer.bytes_B[24 * 5] += 1
    with pytest.raises(WeightSyncError, match=r"layers\.5\.mlp\S+ of rank 0 of the engine, from train worker 2"):
        read_bucket(sent, other)


def test_sums_that_came_with_a_payload_for_a_gpu_are_held_against_sglangs() -> None:
    found = {name: name[::-1] for name in NAMES}
    sent = msgspec.structs.replace(bucket(NAMES), handle=None, payload=b"handles", read_back=found)
    sums = ShardChecksums("all")
    sums.note(sent, sent.read_back.get)
    assert len(sums.entries) == len(NAMES)
    sums.check(4, [found])
    with pytest.raises(WeightSyncError, match=r"layers\.7\.mlp\S+ of rank 0 of the engine, from train worker 2 has"):
        sums.check(4, [found | {NAMES[7]: "0"}])


def test_memory_of_another_machine_is_refused_with_the_remedy() -> None:
    with pytest.raises(WeightSyncError, match=r"rollout\.weight_transport = 'hf_buckets'"):
        map_buffer(BufferHandle("elsewhere", 1, 1, 1))
