"""One engine's end of a weight session: buckets are checked, loaded, and held against what SGLang then has."""

from __future__ import annotations

from hybridflow.errors import WeightSyncError
from hybridflow.rollout.shard_loader import ShardLoader
from hybridflow.rollout.sync.rank_loader import LOADER
from hybridflow.rollout.weight_api import WeightApi
from hybridflow.rollout.whole_tensors import WholeTensors
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, TensorEntry, check_bucket
from hybridflow.weights.reshard.shard_bucket import ShardRound
from hybridflow.weights.shared_buckets import SharedBucket, open_bucket


class EngineWeights:
    """begin, load each bucket, verify, end.

    Args:
        api: SGLang's own calls.
        shards: Maps and checks what train ranks on this node hand over.
        num_ranks: Of the engine, each of which gets a copy of the reference to a bucket.
    """

    def __init__(self, api: WeightApi, shards: ShardLoader, num_ranks: int) -> None:
        self.api = api
        self._shards = shards
        self._whole = WholeTensors(shards.verify)
        self._num_ranks = num_ranks
        self._version: int | None = None
        self._loaded: list[TensorEntry] = []
        self._groups: list[str] = []
        """Process groups that the engine's ranks are in."""

    @property
    def is_in_session(self) -> bool:
        return self._version is not None

    def begin(self, version: int) -> None:
        """The buckets of this version follow."""
        self._version = version
        self._loaded = []
        self._shards.begin()
        self._whole.begin(version)
        self.api.begin()

    def join_group(self, group: BroadcastGroup, rank_offset: int) -> None:
        """Every rank joins, as rank `rank_offset` and on, until the session ends. Blocks until all members have."""
        self.api.join_group(group, rank_offset)
        self._groups.append(group.name)

    def load(self, bucket: Bucket | SharedBucket | ShardRound | Broadcast) -> None:
        """Verifies a bucket and loads it.

        Whole tensors go in under their HF names, and SGLang slices them for each of its TP ranks; shards go in as they
        are, under SGLang's own names. What is only announced is received from the train worker that broadcasts it.

        Raises WeightSyncError for a bucket of another version, or one that was changed on its way.
        """
        if bucket.version != self._version:
            raise WeightSyncError(f"bucket of version {bucket.version} in a session for version {self._version}")
        if isinstance(bucket, ShardRound):
            self.api.update(self._shards.open_round(bucket), LOADER)
            self._shards.confirm_round(bucket)
            return
        if isinstance(bucket, Broadcast):
            names, shapes = [e.name for e in bucket.entries], [list(e.shape) for e in bucket.entries]
            self.api.receive(names, [e.dtype for e in bucket.entries], shapes, bucket.group)
            self._whole.note(bucket)
            self._loaded.extend(bucket.entries)
            return
        from sglang.srt.utils import MultiprocessingSerializer

        if isinstance(bucket, SharedBucket):
            bucket = open_bucket(bucket)
        check_bucket(bucket)
        named = [(entry.name, tensor) for entry, tensor in zip(bucket.entries, bucket.tensors, strict=True)]
        self.api.update([MultiprocessingSerializer.serialize(named) for _ in range(self._num_ranks)], None)
        self._whole.note(bucket)
        self._loaded.extend(bucket.entries)

    def verify(self) -> int:
        """All buckets are there: SGLang's checksums are held against them. Returns the version.

        Raises WeightSyncError naming tensor and rank for one that differs.
        """
        version = self._version
        assert version is not None, "begin was not called"
        self.api.end()
        while self._groups:
            self.api.leave_group(self._groups.pop())
        if self._shards.is_verifying:
            self._shards.check(version, self.api.checksums(self._shards.names_to_skip))
        elif self._whole.is_verifying:
            self._whole.check(version, self.api.checksums(self._whole.names_to_skip))
        return version

    def end(self) -> list[TensorEntry]:
        """Closes the session; returns what was loaded in it."""
        self._version = None
        return self._loaded + self._shards.entries
