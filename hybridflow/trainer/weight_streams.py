"""Weight streams: the ways in which train workers hand their weights out, of which `runtime/system.py` chooses one.

    HFBuckets      whole tensors under Hugging Face names, gathered; works for every model
    Broadcasts     the same from device to device, to engines on devices of their own
    ExactShards    parameters as each rank of SGLang holds them; no tensor is gathered

All hand out rounds between `begin` and `end`. The reader is at most one round behind when it asks for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray

from hybridflow.cluster.workers import Worker, gather, stream
from hybridflow.errors import WeightSyncError
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import TensorEntry
from hybridflow.weights.reshard.shard_bucket import ShardBucket, ShardRound, check_engines_alike, rank_entries


class HFBuckets:
    """Buckets of whole tensors; on one node by memory that its processes share, and only between nodes by Ray's store.

    `shared` says that all workers and engines are on one.
    """

    def __init__(self, workers: list[Worker], bucket_bytes: int, *, shared: bool) -> None:
        self._workers = workers
        self._bucket_bytes = bucket_bytes
        self._shared = shared

    def begin(self, version: int) -> None:
        """The weights are handed out as this version."""
        self._rounds = self._make_rounds(version)

    def next(self) -> Any | None:
        """The next round, a reference to a weight bucket; None after the last."""
        return next(self._rounds, None)

    def end(self) -> list[TensorEntry]:
        """All rounds have been loaded; what all ranks together handed out."""
        calls = [worker.call("published_manifest") for worker in self._workers]
        return [entry for entries in gather(calls) for entry in entries]

    def _make_rounds(self, version: int) -> Iterator[Any]:
        """Buckets as the ranks make them; every rank takes part, in rank order per stage."""
        arguments = (version, self._bucket_bytes, self._shared)
        streams = [stream(worker, "stream_weights", *arguments) for worker in self._workers]
        for references in streams:
            yield from references


class Broadcasts(HFBuckets):
    """Buckets of whole tensors over process groups, one pipeline stage after the other; only descriptions of them pass
    through the driver. The first round of a stage is the group that the engines have to join.

    Args:
        num_stages: Pipeline stages, each of as many workers, in order.
        num_receivers: Ranks of engines that take part in the update under way.
        verified: SGLang's checksums are computed too.
    """

    def __init__(
        self,
        workers: list[Worker],
        bucket_bytes: int,
        *,
        num_stages: int,
        num_receivers: Callable[[], int],
        verified: bool,
    ) -> None:
        super().__init__(workers, bucket_bytes, shared=False)
        self._per_stage = len(workers) // num_stages
        self._num_receivers = num_receivers
        self._verified = verified

    def _make_rounds(self, version: int) -> Iterator[BroadcastGroup | Broadcast]:
        """Announcements, each followed by what it announces: the reader must let the engines receive it."""
        for start in range(0, len(self._workers), self._per_stage):
            options = (version, self._bucket_bytes, 1 + self._num_receivers(), self._verified)
            stage = self._workers[start : start + self._per_stage]
            for references in [stream(worker, "broadcast_weights", *options) for worker in stage]:
                for reference in references:
                    yield ray.get(reference)


class ExactShards:
    """Rounds of shards; only descriptions of them pass through the driver.

    A round is assembled when its reader asks for it, into the memory of the round before the last: the reader must have
    loaded that one everywhere.
    """

    def __init__(self, workers: list[Worker], num_rounds: int) -> None:
        self._workers = workers
        self._num_rounds = num_rounds

    def begin(self, version: int) -> None:
        """The weights are handed out as this version."""
        self._version = version
        self._number = 0
        self._manifest: list[TensorEntry] = []

    def next(self) -> ShardRound | None:
        """The next round; None after the last.

        Raises WeightSyncError, naming tensor and ranks, where replicas of the trainer differ.
        """
        if self._number == self._num_rounds:
            return None
        made = gather([worker.call("assemble_shards", self._number, self._version) for worker in self._workers])
        engines = _by_engine([bucket for bucket in made if bucket is not None])
        check_engines_alike(engines)
        self._number += 1
        self._manifest += [entry for bucket in engines[0] for entry in rank_entries(bucket)]
        return ShardRound(version=self._version, engines=engines)

    def end(self) -> list[TensorEntry]:
        """The entries that one engine, as every other, was handed since `begin`; names tell its ranks apart."""
        return self._manifest


def _by_engine(buckets: list[ShardBucket]) -> list[list[ShardBucket]]:
    engines: dict[int, list[ShardBucket]] = {}
    for bucket in sorted(buckets, key=lambda bucket: (bucket.engine, bucket.tp_rank)):
        engines.setdefault(bucket.engine, []).append(bucket)
    if not engines:
        raise WeightSyncError("no train worker assembled weights for an engine: the plan has none. This is a bug")
    return [engines[engine] for engine in sorted(engines)]
