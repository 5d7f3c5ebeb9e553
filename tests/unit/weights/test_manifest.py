"""Tensors arrive as they were sent, or the error names the tensor."""

from __future__ import annotations

import zlib

import msgspec
import pytest
import torch

from hybridflow.errors import WeightSyncError
from hybridflow.weights.manifest import (
    Bucket,
    TensorEntry,
    check_bucket,
    compare_manifests,
    describe_tensor,
    iterate_buckets,
)


def pack(sizes: list[int], bucket_bytes: int) -> list[Bucket]:
    named = [(f"t{index}", torch.full((size,), float(index))) for index, size in enumerate(sizes)]
    return list(iterate_buckets(named, version=3, source="train worker 0", bucket_bytes=bucket_bytes))


def test_buckets_keep_the_order_and_the_bound() -> None:
    buckets = pack([2, 3, 4, 1, 9, 1], bucket_bytes=5 * 4)
    assert [[entry.name for entry in bucket.entries] for bucket in buckets] == [
        ["t0", "t1"],
        ["t2", "t3"],
        ["t4"],
        ["t5"],
    ]
    assert [bucket.num_bytes for bucket in buckets] == [20, 20, 36, 4]  # t4 alone is above the bound
    assert all(bucket.version == 3 for bucket in buckets)
    for bucket in buckets:
        check_bucket(bucket)


def test_no_tensors_make_no_bucket() -> None:
    assert pack([], bucket_bytes=4) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_an_entry_is_the_checksum_of_the_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    raw = bytes(tensor.reshape(-1).view(torch.uint8).tolist())
    assert describe_tensor("w", tensor) == TensorEntry("w", shape, str(dtype)[6:], zlib.crc32(raw))


def test_a_described_tensor_can_still_leave_its_device() -> None:
    """Its storage is shrunk to nothing then; numpy would have locked it."""
    tensor = torch.ones(4)
    describe_tensor("w", tensor)
    assert tensor.untyped_storage().resizable()


def test_a_tensor_that_is_not_contiguous_travels_in_its_logical_order() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).t()
    (bucket,) = iterate_buckets([("w", tensor)], version=0, source="s", bucket_bytes=100)
    assert bucket.entries[0] == describe_tensor("w", torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))


def test_one_changed_bit_is_named() -> None:
    (bucket,) = pack([2, 3], bucket_bytes=100)
    bucket.tensors[1].view(torch.int32)[2] ^= 1
    with pytest.raises(WeightSyncError, match="weights version 3: tensor t1 from train worker 0 arrived as"):
        check_bucket(bucket)


def test_another_shape_is_named() -> None:
    (bucket,) = pack([4], bucket_bytes=100)
    changed = msgspec.structs.replace(bucket, tensors=[bucket.tensors[0].reshape(2, 2)])
    with pytest.raises(WeightSyncError, match="tensor t0"):
        check_bucket(changed)


def entry(name: str, checksum: int = 0) -> TensorEntry:
    return TensorEntry(name, (1,), "float32", checksum)


def test_manifests_in_any_order_agree() -> None:
    compare_manifests([entry("a"), entry("b")], [entry("b"), entry("a")], version=1)


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        ([entry("a")], r"confirms 1 tensors, 2 were sent \(missing \['b'\], surplus \[\], differing \[\]\)"),
        ([entry("a"), entry("b"), entry("c")], r"missing \[\], surplus \['c'\], differing \[\]"),
        ([entry("a"), entry("b", checksum=1)], r"missing \[\], surplus \[\], differing \['b'\]"),
        ([entry("a"), entry("b"), entry("b")], r"confirms 3 tensors, 2 were sent"),
    ],
)
def test_manifests_that_differ_say_how(loaded: list[TensorEntry], message: str) -> None:
    with pytest.raises(WeightSyncError, match=f"weights version 4.*{message}"):
        compare_manifests([entry("a"), entry("b")], loaded, version=4)
