"""Loading of a weight sync into one SGLang engine: begin, each bucket or round checked and loaded, verify, end.

Whole tensors go in under their Hugging Face names, and SGLang slices them for each of its TP ranks. Shards go in as
they are, under SGLang's own names: for each rank of the engine the process of SGLang's tokenizer manager maps the
bucket that the train worker assembled, checks every parameter against its CRC-32 and hands SGLang that same memory, one
flat tensor, which SGLang's rank copies into its parameters (`rank_loader.py`). On a GPU the train worker's payload is
passed on as it is.

What was loaded is confirmed twice: by the rank itself, of every parameter of a round as it holds it (`Receipt`), and at
the end by SGLang's own checksums (`verify.py`).
"""

from __future__ import annotations

from typing import Any

import msgspec
from torch import Tensor

from hybridflow.errors import WeightSyncError
from hybridflow.rollout.sync.rank_loader import LOADER
from hybridflow.rollout.sync.sglang_api import WeightApi
from hybridflow.rollout.sync.verify import ShardChecksums, WholeTensorChecksums
from hybridflow.weights.broadcast import Broadcast, BroadcastGroup
from hybridflow.weights.manifest import Bucket, TensorEntry, check_bucket
from hybridflow.weights.reshard.buffers import BufferHandle, map_buffer
from hybridflow.weights.reshard.receipt import Receipt, ShardOrder
from hybridflow.weights.reshard.schedule import ROUNDS_UNDER_WAY
from hybridflow.weights.reshard.shard_bucket import ShardBucket, ShardRound, Verify, read_bucket
from hybridflow.weights.shared_buckets import SharedBucket, open_bucket
from megatron_ext.platform.device import Device


class EngineWeights:
    """Weights of one engine: begin, load each bucket, verify, end.

    Args:
        api: SGLang's own calls.
        index: Place of the engine among those of the run.
        verify: Which parameters SGLang is asked to confirm.
        num_ranks: Ranks of the engine, each of which gets a copy of the reference to a bucket.
        device: What they compute on.
    """

    def __init__(self, api: WeightApi, index: int, verify: Verify, num_ranks: int, device: Device) -> None:
        self.api = api
        self._shards = ShardChecksums(verify)
        self._whole = WholeTensorChecksums(verify, device)
        self._mapped = MappedShards(index, self._shards)
        self._num_ranks = num_ranks
        self._version: int | None = None
        self._groups: list[str] = []
        """Process groups that the engine's ranks are in."""

    @property
    def is_in_sync(self) -> bool:
        """Whether a sync has begun and not ended."""
        return self._version is not None

    def begin(self, version: int) -> None:
        """The buckets of this version follow."""
        self._version = version
        self._shards.begin()
        self._whole.begin(version)
        self.api.begin()

    def join_group(self, group: BroadcastGroup, rank_offset: int) -> None:
        """Every rank joins, as rank `rank_offset` and on, until the sync ends. Blocks until all members have."""
        self.api.join_group(group, rank_offset)
        self._groups.append(group.name)

    def load(self, bucket: Bucket | SharedBucket | ShardRound | Broadcast) -> None:
        """Verifies a bucket and loads it. What is only announced is received from the train worker that broadcasts it.

        Raises WeightSyncError for a bucket of another version, or one that was changed on its way.
        """
        if bucket.version != self._version:
            raise WeightSyncError(f"bucket of version {bucket.version} in a sync of version {self._version}")
        if isinstance(bucket, ShardRound):
            self.api.update(self._mapped.open_round(bucket), LOADER)
            self._mapped.confirm_round(bucket)
            return
        if isinstance(bucket, Broadcast):
            names, shapes = [e.name for e in bucket.entries], [list(e.shape) for e in bucket.entries]
            self.api.receive(names, [e.dtype for e in bucket.entries], shapes, bucket.group)
            self._whole.note(bucket)
            return
        from sglang.srt.utils import MultiprocessingSerializer

        if isinstance(bucket, SharedBucket):
            bucket = open_bucket(bucket)
        check_bucket(bucket)
        named = [(entry.name, tensor) for entry, tensor in zip(bucket.entries, bucket.tensors, strict=True)]
        self.api.update([MultiprocessingSerializer.serialize(named) for _ in range(self._num_ranks)], None)
        self._whole.note(bucket)

    def verify(self) -> int:
        """All buckets are there: SGLang's checksums are held against them. Returns the version.

        Raises WeightSyncError naming tensor and rank for one that differs.
        """
        version = self._version
        assert version is not None, "begin was not called"
        self.api.end()
        while self._groups:
            self.api.leave_group(self._groups.pop())
        sums = self._shards if self._shards.is_verifying else self._whole
        if sums.is_verifying:
            sums.check(version, self.api.checksums(sums.names_to_skip))
        return version

    def end(self) -> list[TensorEntry]:
        """Closes the sync; returns what was loaded in it."""
        self._version = None
        return self._whole.entries + self._shards.entries


class MappedShards:
    """Rounds of shards for one engine, the `index`-th of the run, as payloads for SGLang."""

    def __init__(self, index: int, sums: ShardChecksums) -> None:
        """`sums` is told of every bucket."""
        self._index = index
        self._sums = sums
        self._mapped: dict[BufferHandle, Tensor] = {}
        self._receipts: dict[tuple[int, int], Receipt] = {}
        """By rank and turn: two rounds may be under way."""

    def open_round(self, round_: ShardRound) -> list[bytes]:
        """One payload per rank of the engine, for `UpdateWeightsFromTensorReqInput`.

        Raises WeightSyncError naming tensor and ranks if one is not as it was sent.
        """
        from sglang.srt.utils import MultiprocessingSerializer

        payloads = []
        for bucket in round_.of_engine(self._index):
            order = self._order(bucket)
            content = self._map_bucket(bucket) if bucket.payload is None else self._pass_on(bucket)
            payloads.append(MultiprocessingSerializer.serialize([(order, content)]))
        return payloads

    def confirm_round(self, round_: ShardRound) -> None:
        """SGLang has answered: every parameter of the round is held against what its rank says that it holds.

        Raises WeightSyncError naming tensor and ranks for one that differs.
        """
        for bucket in round_.of_engine(self._index):
            self._receipt(bucket).check(bucket.version, bucket.number, bucket.entries, bucket.owner)

    def _receipt(self, bucket: ShardBucket) -> Receipt:
        return self._receipts.setdefault((bucket.tp_rank, bucket.number % ROUNDS_UNDER_WAY), Receipt())

    def _order(self, bucket: ShardBucket) -> str:
        order = ShardOrder(
            version=bucket.version,
            number=bucket.number,
            dtype=bucket.entries[0].dtype,
            shapes=[(entry.name, entry.shape) for entry in bucket.entries],
            on_host=bucket.payload is None,
            receipt=self._receipt(bucket).open(len(bucket.entries)),
        )
        return msgspec.json.encode(order).decode()

    def _pass_on(self, bucket: ShardBucket) -> Any:
        """The content of a bucket on a GPU: handles, which the rank alone opens. Not run on a GPU yet."""
        from sglang.srt.model_executor.model_runner_components.weight_updater import LocalSerializedTensor

        assert bucket.payload is not None, "a bucket lies in memory that is mapped, or on a GPU"
        self._sums.note(bucket, bucket.read_back.get)
        return LocalSerializedTensor(values=[bucket.payload] * (bucket.tp_rank + 1))

    def _map_bucket(self, bucket: ShardBucket) -> Tensor:
        """The content of a bucket that lies in memory of this machine."""
        from sglang.srt.managers.mm_utils import tensor_hash

        assert bucket.handle is not None, "a bucket lies in memory that is mapped, or on a GPU"
        if bucket.handle not in self._mapped:
            self._mapped[bucket.handle] = map_buffer(bucket.handle)
        named = read_bucket(bucket, self._mapped[bucket.handle])
        tensors = dict(named)
        self._sums.note(bucket, lambda name: f"{tensor_hash(tensors[name]):016x}")
        return self._mapped[bucket.handle][: sum(tensor.nbytes for _, tensor in named)]
