"""Buckets of whole tensors by shared memory."""

from __future__ import annotations

import os

import pytest
import torch

from hybridflow.errors import WeightSyncError
from hybridflow.weights.manifest import Bucket, check_bucket, iterate_buckets
from hybridflow.weights.shared_buckets import KEPT, BucketMemory, SharedBucket, open_bucket

TENSORS = [
    ("embedding", torch.randn(700, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)),
    ("norm", torch.arange(5, dtype=torch.float32)),
    ("scalar", torch.tensor(3.0, dtype=torch.float64)),
    ("last", torch.ones(1, 1, 7)),
]


def buckets(bucket_bytes: int) -> list[Bucket]:
    return list(iterate_buckets(TENSORS, version=4, source="train worker 0", bucket_bytes=bucket_bytes))


@pytest.mark.parametrize("bucket_bytes", [1, 100, 10_000])
def test_what_is_opened_is_what_was_shared(bucket_bytes: int) -> None:
    memory, plain = BucketMemory(), buckets(bucket_bytes)
    shared = list(memory.share(plain))
    assert all(isinstance(one, SharedBucket) for one in shared)
    for bucket, opened in zip(plain, map(open_bucket, shared), strict=True):
        check_bucket(opened)
        assert (opened.version, opened.source, opened.entries) == (bucket.version, bucket.source, bucket.entries)
        for ours, theirs in zip(bucket.tensors, opened.tensors, strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    memory.close()


def test_a_changed_byte_is_found() -> None:
    memory = BucketMemory()
    (shared,) = memory.share(buckets(10_000))
    open_bucket(shared).tensors[1][2] += 1
    with pytest.raises(WeightSyncError, match="tensor norm from train worker 0 arrived as"):
        check_bucket(open_bucket(shared))


def test_memory_goes_back_as_new_buckets_come() -> None:
    memory, before = BucketMemory(), len(os.listdir("/proc/self/fd"))
    shared = [one for _ in range(5) for one in memory.share(buckets(1))]
    assert len(os.listdir("/proc/self/fd")) - before <= 2 * KEPT  # torch has one too
    assert len(shared) > 2 * KEPT
    check_bucket(open_bucket(shared[-KEPT]))
    memory.close()
    with pytest.raises(WeightSyncError, match="cannot open the weights of process"):
        open_bucket(shared[-1])
