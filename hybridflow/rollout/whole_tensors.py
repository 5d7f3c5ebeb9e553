"""Whole tensors that were handed to SGLang, held against what it then has.

SGLang fuses and cuts most tensors, and its checksums are of what comes out. Those that it keeps as they are, under the
same name and on every rank (norms; with one rank also the output projections and the embedding), can be compared. Which
these are is learnt in the engine's first update: all whose checksums agree then. From there on they have to.
"""

from __future__ import annotations

from hybridflow.errors import WeightSyncError
from hybridflow.rollout.shard_loader import SAMPLE_PERIOD, Verify
from hybridflow.weights.broadcast import Broadcast
from hybridflow.weights.manifest import Bucket
from megatron_ext.platform.device import Device


class WholeTensors:
    """Of one engine, whose ranks compute on `device`."""

    def __init__(self, verify: Verify, device: Device) -> None:
        # SGLang's checksum on a GPU is another one than of the same bytes on the host.
        self._verify: Verify = "none" if device.has_cuda else verify
        self._kept: list[str] | None = None
        """Names of tensors that SGLang keeps as they are; None until that is learnt."""
        self._fused: list[str] = []
        """SGLang's names of all its other parameters."""
        self.begin(0)

    def begin(self, version: int) -> None:
        """A new set of weights follows."""
        self._sent: dict[str, str] = {}
        """SGLang's checksum of what was handed over, of tensors that are verified in this update."""
        kept = self._kept or []
        sample = [name for place, name in enumerate(kept) if (place + version) % SAMPLE_PERIOD == 0]
        self._chosen = set(kept if self._verify == "all" else sample)

    def note(self, bucket: Bucket | Broadcast) -> None:
        """To be called with everything that SGLang is given."""
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
