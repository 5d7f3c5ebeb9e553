"""Verification of what SGLang holds after a weight sync: its own checksums against those of what was handed over.

SGLang gives a checksum of every parameter (`check_weights`), of which all or a sample are asked for. Parameters that
came as shards are all known under SGLang's own names.

Whole tensors are mostly fused and cut by SGLang, and its checksums are of what comes out. Those that it keeps as they
are, under the same name and on every rank (norms; with one rank also the output projections and the embedding), can be
compared. Which these are is learnt in the engine's first sync: all whose checksums agree then. From there on they have
to.
"""

from __future__ import annotations

from collections.abc import Callable

from hybridflow.errors import WeightSyncError
from hybridflow.weights.broadcast import Broadcast
from hybridflow.weights.manifest import Bucket, TensorEntry
from hybridflow.weights.reshard.shard_bucket import SAMPLE_PERIOD, ShardBucket, Verify, is_read_back, rank_entries
from megatron_ext.platform.device import Device


class ShardChecksums:
    """Checksums of the shards of a sync, by rank of the engine."""

    def __init__(self, verify: Verify) -> None:
        self._verify: Verify = verify
        self._num_syncs = 0
        self.begin()

    def begin(self) -> None:
        """A new set of weights follows."""
        self.entries: list[TensorEntry] = []
        """Entries that were handed over; names tell ranks apart."""
        self._owners: dict[int, str] = {}
        self._names: dict[str, bool] = {}
        """Every parameter that came, and whether it is verified."""
        self._expected: dict[int, dict[str, str]] = {}
        """By rank: SGLang's checksum of what was handed over."""

    def note(self, bucket: ShardBucket, checksum: Callable[[str], str | None]) -> None:
        """A bucket is handed over. `checksum` is SGLang's, of a parameter by its name; None: it is not read back."""
        self.entries += rank_entries(bucket)
        self._owners[bucket.tp_rank] = bucket.owner
        expected = self._expected.setdefault(bucket.tp_rank, {})
        for name in (entry.name for entry in bucket.entries):
            is_chosen = is_read_back(self._verify, self._num_syncs + 1, len(self._names), bucket.version)
            if not self._names.setdefault(name, is_chosen):
                continue
            value = checksum(name)
            if value is None:
                self._names[name] = False  # an engine that was started later: the trainer's first update was another
            else:
                expected[name] = value

    @property
    def is_verifying(self) -> bool:
        """Whether SGLang has to be asked for anything."""
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
        self._num_syncs += 1


class WholeTensorChecksums:
    """Checksums of the whole tensors of a sync, of those that SGLang keeps as they are."""

    def __init__(self, verify: Verify, device: Device) -> None:
        """`device`: what the engine's ranks compute on."""
        # SGLang's checksum on a GPU is another one than of the same bytes on the host.
        self._verify: Verify = "none" if device.has_cuda else verify
        self.entries: list[TensorEntry] = []
        """Entries that were handed over."""
        self._kept: list[str] | None = None
        """Names of tensors that SGLang keeps as they are; None until that is learnt."""
        self._fused: list[str] = []
        """SGLang's names of all its other parameters."""
        self.begin(0)

    def begin(self, version: int) -> None:
        """A new set of weights follows."""
        self.entries = []
        self._sent: dict[str, str] = {}
        """SGLang's checksum of what was handed over, of tensors that are verified in this sync."""
        kept = self._kept or []
        sample = [name for place, name in enumerate(kept) if (place + version) % SAMPLE_PERIOD == 0]
        self._chosen = set(kept if self._verify == "all" else sample)

    def note(self, bucket: Bucket | Broadcast) -> None:
        """A bucket is handed over."""
        self.entries.extend(bucket.entries)
        if self._verify == "none":
            return
        names = [entry.name for entry in bucket.entries]
        wanted = [(place, name) for place, name in enumerate(names) if self._kept is None or name in self._chosen]
        if isinstance(bucket, Broadcast):
            self._sent |= {name: bucket.read_back[name] for _, name in wanted if bucket.read_back}
            return
        from sglang.srt.managers.mm_utils import tensor_hash

        self._sent |= {name: f"{tensor_hash(bucket.tensors[place]):016x}" for place, name in wanted}

    @property
    def is_verifying(self) -> bool:
        """Whether SGLang has to be asked for anything."""
        return bool(self._sent)

    @property
    def names_to_skip(self) -> list[str]:
        """Parameters that SGLang need not read back."""
        return self._fused + [name for name in self._kept or [] if name not in self._sent]

    def check(self, version: int, checksums: list[dict[str, str]]) -> None:
        """Holds SGLang's checksums, by rank, against what was handed over.

        Raises WeightSyncError naming tensor and rank for one that differs.
        """
        if self._kept is None:
            agree = {name for name in self._sent if all(rank.get(name) == self._sent[name] for rank in checksums)}
            self._kept = sorted(agree)
            self._fused = sorted({name for rank in checksums for name in rank} - agree)
            return
        for tp_rank, found in enumerate(checksums):
            for name, expected in self._sent.items():
                if found.get(name) != expected:
                    raise WeightSyncError(
                        f"weights version {version}: after the update {name} of rank {tp_rank} of the engine has "
                        f"SGLang's checksum {found.get(name)}, what was handed over has {expected}"
                    )
