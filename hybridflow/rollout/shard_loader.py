"""The engine's end of exact resharding: rounds of shards in, SGLang's payloads out, and what SGLang then holds checked.

For each rank of the engine the process of SGLang's tokenizer manager maps the bucket that the train worker assembled,
checks every parameter against its CRC-32 and hands SGLang a list of (name, tensor) in that same memory. SGLang's rank
copies them into its parameters (`load_format="direct"`). On a GPU the train worker's payload is passed on as it is.

What was loaded is confirmed by SGLang itself: its own checksum of its parameters (`check_weights`) has to be that of
what lay in the buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from hybridflow.errors import WeightSyncError
from hybridflow.weights.manifest import TensorEntry
from hybridflow.weights.reshard.buffers import BufferHandle, map_buffer
from hybridflow.weights.reshard.shard_bucket import ShardBucket, ShardRound, rank_entries, read_bucket

SAMPLE_PERIOD = 16
"""Of so many parameters one is verified in an update, another one in the next."""

Verify = Literal["all", "sample", "none"]


class ShardLoader:
    """Of one engine, the `index`-th of the run."""

    def __init__(self, index: int, verify: Verify) -> None:
        self._index = index
        self.verify: Verify = verify
        self._mapped: dict[BufferHandle, Tensor] = {}
        self._num_sessions = 0
        self.begin()

    def begin(self) -> None:
        """A new set of weights follows."""
        self._entries: list[TensorEntry] = []
        self._owners: dict[int, str] = {}
        self._names: dict[str, bool] = {}
        """Every parameter that came, and whether it is verified."""
        self._expected: dict[int, dict[str, str]] = {}
        """By rank: SGLang's checksum of what was handed over."""

    @property
    def entries(self) -> list[TensorEntry]:
        """What was handed over since `begin`; names tell ranks apart."""
        return self._entries

    def open_round(self, round_: ShardRound) -> list[bytes]:
        """One payload per rank of the engine, for `UpdateWeightsFromTensorReqInput`.

        Raises WeightSyncError naming tensor and ranks if one is not as it was sent.
        """
        payloads = []
        for bucket in round_.of_engine(self._index):
            if bucket.payload is not None:
                self._note(bucket, bucket.read_back.__getitem__)
                payloads.append(bucket.payload)
            else:
                payloads.append(self._map_bucket(bucket))
        return payloads

    def _map_bucket(self, bucket: ShardBucket) -> bytes:
        """The payload for a bucket that lies in memory of this machine."""
        from sglang.srt.managers.mm_utils import tensor_hash
        from sglang.srt.utils import MultiprocessingSerializer

        assert bucket.handle is not None, "a bucket lies in memory that is mapped, or on a GPU"
        if bucket.handle not in self._mapped:
            self._mapped[bucket.handle] = map_buffer(bucket.handle)
        named = read_bucket(bucket, self._mapped[bucket.handle])
        tensors = dict(named)
        self._note(bucket, lambda name: f"{tensor_hash(tensors[name]):016x}")
        return MultiprocessingSerializer.serialize(named)

    def _note(self, bucket: ShardBucket, checksum: Callable[[str], str]) -> None:
        """`checksum` is SGLang's, of a parameter by its name."""
        self._entries += rank_entries(bucket)
        self._owners[bucket.tp_rank] = bucket.owner
        expected = self._expected.setdefault(bucket.tp_rank, {})
        for name in (entry.name for entry in bucket.entries):
            if self._names.setdefault(name, self._is_chosen(len(self._names), bucket.version)):
                expected[name] = checksum(name)

    def _is_chosen(self, place: int, version: int) -> bool:
        if self.verify == "sample" and self._num_sessions:
            return (place + version) % SAMPLE_PERIOD == 0
        return self.verify != "none"

    @property
    def is_verifying(self) -> bool:
        return any(self._names.values())

    @property
    def names_to_skip(self) -> list[str]:
        """Parameters that SGLang need not read back."""
        return [name for name, chosen in self._names.items() if not chosen]

    def check(self, version: int, checksums: list[dict[str, str]]) -> None:
        """Holds SGLang's checksums, by rank, against what was handed over.

        Raises WeightSyncError naming tensor and ranks for a parameter that differs, or that nothing was sent for.
        """
        for tp_rank, found in enumerate(checksums):
            for name, expected in self._expected[tp_rank].items():
                if found.get(name) != expected:
                    raise WeightSyncError(
                        f"weights version {version}: after the update {name} of {self._owners[tp_rank]} has SGLang's "
                        f"checksum {found.get(name)}, what was handed over has {expected}"
                    )
            unknown = sorted(set(found) - set(self._names))
            if unknown:
                raise WeightSyncError(
                    f"weights version {version}: SGLang has parameters that nothing was sent for, on rank {tp_rank}: "
                    f"{', '.join(unknown[:3])}; set rollout.weight_transport = 'hf_buckets' for this model"
                )
        self._num_sessions += 1
