"""Colocation of trainer and engines on the same devices: each is offloaded while the other works.

    engines release KV pool | weights, CUDA graphs    gate    trainer is onloaded    TRAIN
    gradients, optimizer are offloaded    gate    engines take weights    weight sync
    weights are offloaded    gate    engines take their KV pool    DECODE

At each gate the free memory is looked at first, so that what does not fit is said in words and not by an allocator.
Where nothing is released (a CPU, by default) there is no gate, and the weight sync is all that is left. With CUDA it is
the same calls, untested.

A weight sync has three parts, which engines call: it begins, hands out rounds, and ends with what engines confirmed.
Memory moves at its beginning and its end, and never while a round is made.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hybridflow.config.sections import Config
from hybridflow.errors import PlacementError
from hybridflow.protocols import ColocatedEngines, ColocatedTrainer
from hybridflow.runtime.open_order import RELEASES
from hybridflow.types import MemoryTag, WorkerMemory
from hybridflow.weights.manifest import TensorEntry, compare_manifests

logger = logging.getLogger(__name__)

MIB = 2**20
PARTS = ("weights", "gradients", "optimizer")


def check_gate(gate: str, wanted: dict[str, int], memory: Sequence[WorkerMemory], engines: dict[str, int]) -> None:
    """Raises PlacementError if a device has less free than is wanted of it.

    Args:
        gate: What is about to happen.
        wanted: Bytes by device; "" stands for every device.
        memory: What train workers see of their devices.
        engines: Bytes that engines hold, by what they are.
    """
    for device in sorted({one.device for one in memory}):
        here = [one for one in memory if one.device == device]
        free = min(one.free_bytes for one in here)
        needed = wanted.get(device, 0) + wanted.get("", 0)
        if needed <= free:
            continue
        holders = [f"{one.worker} {part} {size / MIB:,.0f} MiB" for one in here for part, size in one.on_device.items()]
        holders += [f"engines {tag} {size / MIB:,.0f} MiB" for tag, size in engines.items() if size]
        raise PlacementError(
            f"{gate} on {device}: {needed / MIB:,.0f} MiB are wanted, {free / MIB:,.0f} MiB are free. Held there: "
            f"{', '.join(holders) or 'nothing of this run'}. Remedy: lower rollout.kv_cache_tokens or "
            f"rollout.sglang.mem_fraction_static, set train.offload_while_decoding and rollout.release_memory to 'on', "
            f"or end what else uses the device"
        )


def offloads_while_decoding(config: Config, has_cuda: bool) -> bool:
    """Whether the trainer leaves the device while engines decode; `has_cuda` is of the slots that they share."""
    wanted = config.train.offload_while_decoding
    return wanted == "on" or (wanted == "auto" and has_cuda and not config.rollout.own_devices)


class Colocation:
    """Moves memory between trainer and engines, and gives engines the trainer's weights.

    Args:
        releases: Engines were opened so that they can release memory.
        offloads: The trainer leaves the device while engines decode.
        released: What engines have given back already: bytes by release.
    """

    def __init__(
        self,
        trainer: ColocatedTrainer,
        rollout: ColocatedEngines,
        *,
        releases: bool,
        offloads: bool,
        released: Mapping[str, int] | None = None,
    ) -> None:
        self._trainer = trainer
        self._rollout = rollout
        self._releases = releases
        self._offloads = offloads
        self._released = dict(released or {})
        """By release: bytes that engines gave back and have not taken again."""
        self._sizes = dict(self._released)
        """By release: bytes that engines gave back last."""
        self._away: set[str] = set()
        """Parts of the trainer that are on the host."""
        self._is_onloaded_for_sync = False
        self.is_with_trainer = False
        """The trainer was given the device, and engines serve nothing."""
        self._metrics: defaultdict[str, float] = defaultdict(float)

    @property
    def is_shared(self) -> bool:
        """Whether anything is moved at all."""
        return self._releases or self._offloads

    def take_metrics(self) -> dict[str, float]:
        """Since the last call, in MiB: moved by what moved, and free at each gate."""
        metrics, self._metrics = dict(self._metrics), defaultdict(float)
        return metrics

    def to_trainer(self) -> None:
        """The trainer may work: engines keep nothing on the device, and serve nothing until `sync_weights`."""
        if self._releases:
            for tags in RELEASES:
                self._release(tags)
        self._onload(*PARTS)
        self.is_with_trainer = True

    def sync_weights(self, version: int) -> None:
        """Engines get the present weights under `version`, and the device; they may decode.

        Raises WeightSyncError if a tensor changed or is missing, or if an engine reports another version. An engine
        that has not confirmed refuses to generate.
        """
        self._offload("gradients", "optimizer")
        self._gate_engines("engines take their weights back", "weights")
        self._rollout.load_weights(self, version)
        self._released.pop("weights", None)
        self._offload("weights")
        self._take_cache()
        self.is_with_trainer = False

    @contextmanager
    def trainer_present(self) -> Iterator[None]:
        """Context in which the whole trainer is on the device and engines do not decode; they keep their weights."""
        away = sorted(self._away)
        makes_room = bool(away) and self._releases and "kv_cache" not in self._released
        if makes_room:
            self._release(("kv_cache",))
        self._onload(*away)
        yield
        self._offload(*away)
        if makes_room:
            self._take_cache()

    # -------------------------------------------------------------------------------------------------- weight sync

    def begin_sync(self, version: int) -> None:
        """Engines wait for this version. Weights on the host are onloaded for it: an engine was started again."""
        self._version = version
        self._is_onloaded_for_sync = "weights" in self._away
        self._onload("weights")
        self._trainer.begin_weights(version)

    def next_round(self) -> Any | None:
        """The next round of weights; None after the last."""
        return self._trainer.next_weights()

    def end_sync(self, confirmed: Mapping[str, list[TensorEntry]]) -> None:
        """Holds what each engine confirmed against what was sent; WeightSyncError for a tensor that differs."""
        sent = self._trainer.end_weights()
        for entries in confirmed.values():
            compare_manifests(sent, entries, self._version)
        if self._is_onloaded_for_sync:
            self._offload("weights")

    # -------------------------------------------------------------------------------------------------------- moves

    def _release(self, tags: tuple[MemoryTag, ...]) -> None:
        if tags[0] in self._released:
            return
        before = self._free()
        given = self._rollout.release(tags)
        after = self._free()
        size = given if given is not None else max(0, after - before)
        self._released[tags[0]] = self._sizes[tags[0]] = size
        self._note("released", tags[0], size)
        self._metrics["perf/free_mib/after_release"] = after / MIB

    def _take_cache(self) -> None:
        if "kv_cache" in self._released:
            self._gate_engines("engines take their KV pool back", "kv_cache")
            self._rollout.resume(["kv_cache"])
            del self._released["kv_cache"]

    def _onload(self, *parts: str) -> None:
        coming = [part for part in PARTS if part in parts and part in self._away]
        if not coming:
            return
        wanted: Counter[str] = Counter()
        for one in self._trainer.memory():
            wanted[one.device] += sum(one.on_host.get(part, 0) for part in coming)
        self._gate("the trainer comes back", dict(wanted))
        self._note("taken", "trainer", self._trainer.to_device(*coming))
        self._away -= set(coming)

    def _offload(self, *parts: str) -> None:
        going = [part for part in PARTS if part in parts and part not in self._away]
        if going and self._offloads:
            self._note("released", "trainer", self._trainer.to_host(*going))
            self._away |= set(going)

    def _gate_engines(self, gate: str, tag: str) -> None:
        if tag in self._released:
            self._gate(gate, {"": self._released[tag]})

    def _gate(self, gate: str, wanted: dict[str, int]) -> None:
        memory = self._trainer.memory()
        free = min(one.free_bytes for one in memory)
        self._metrics[f"perf/free_mib/before_{gate.replace(' ', '_')}"] = free / MIB
        held = {tag: size for tag, size in self._sizes.items() if tag not in self._released}
        check_gate(gate, wanted, memory, held)

    def _free(self) -> int:
        return min(one.free_bytes for one in self._trainer.memory())

    def _note(self, what: str, of: str, num_bytes: int) -> None:
        self._metrics[f"perf/{what}_mib/{of}"] += num_bytes / MIB
        logger.info("%s %s: %.1f MiB", of, what, num_bytes / MIB)
