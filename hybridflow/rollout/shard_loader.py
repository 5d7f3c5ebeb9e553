"""The engine's end of exact resharding: rounds of shards in, SGLang's payloads out, and what SGLang then holds checked.

For each rank of the engine the process of SGLang's tokenizer manager maps the bucket that the train worker assembled,
checks every parameter against its CRC-32 and hands SGLang that same memory, one flat tensor. SGLang's rank
copies them into its parameters (`weight_loader.py`). On a GPU the train worker's payload is passed on as it is.

What was loaded is confirmed twice. The rank itself gives the checksum of every parameter as it holds it, in every
round; and SGLang's own checksum (`check_weights`), of all or of a sample, has to be that of what lay in the buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from torch import Tensor

from hybridflow.errors import WeightSyncError
from hybridflow.weights.manifest import TensorEntry
from hybridflow.weights.reshard.buffers import BufferHandle, map_buffer
from hybridflow.weights.reshard.receipt import Receipt, ShardOrder
from hybridflow.weights.reshard.schedule import ROUNDS_UNDER_WAY
from hybridflow.weights.reshard.shard_bucket import (
    SAMPLE_PERIOD,
    ShardBucket,
    ShardRound,
    Verify,
    is_read_back,
    rank_entries,
    read_bucket,
)

__all__ = ["SAMPLE_PERIOD", "ShardLoader", "Verify"]


class ShardLoader:
    """Of one engine, the `index`-th of the run."""

    def __init__(self, index: int, verify: Verify) -> None:
        self._index = index
        self.verify: Verify = verify
        self._mapped: dict[BufferHandle, Tensor] = {}
        self._num_sessions = 0
        self._receipts: dict[tuple[int, int], Receipt] = {}
        """By rank and turn: two rounds may be under way."""
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
        self._note(bucket, bucket.read_back.get)
        return LocalSerializedTensor(values=[bucket.payload] * (bucket.tp_rank + 1))

    def _map_bucket(self, bucket: ShardBucket) -> Tensor:
        """The content of a bucket that lies in memory of this machine."""
        from sglang.srt.managers.mm_utils import tensor_hash

        assert bucket.handle is not None, "a bucket lies in memory that is mapped, or on a GPU"
        if bucket.handle not in self._mapped:
            self._mapped[bucket.handle] = map_buffer(bucket.handle)
        named = read_bucket(bucket, self._mapped[bucket.handle])
        tensors = dict(named)
        self._note(bucket, lambda name: f"{tensor_hash(tensors[name]):016x}")
        return self._mapped[bucket.handle][: sum(tensor.nbytes for _, tensor in named)]

    def _note(self, bucket: ShardBucket, checksum: Callable[[str], str | None]) -> None:
        """`checksum` is SGLang's, of a parameter by its name; None for one that is not to be read back."""
        self._entries += rank_entries(bucket)
        self._owners[bucket.tp_rank] = bucket.owner
        expected = self._expected.setdefault(bucket.tp_rank, {})
        for name in (entry.name for entry in bucket.entries):
            if not self._names.setdefault(name, self._is_chosen(len(self._names), bucket.version)):
                continue
            value = checksum(name)
            if value is None:
                self._names[name] = False  # an engine that was started later: the trainer's first update was another
            else:
                expected[name] = value

    def _is_chosen(self, place: int, version: int) -> bool:
        return is_read_back(self.verify, self._num_sessions + 1, place, version)

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
