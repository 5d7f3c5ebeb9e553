"""SYNC: the trainer's weights become the engines' weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from hybridflow.protocols import Rollout, Trainer
from hybridflow.weights.manifest import compare_manifests


def publish_weights(
    trainer: Trainer,
    rollout: Rollout,
    version: int,
    stream_weights: Callable[[int], Iterable[Any]] | None = None,
) -> None:
    """Streams every tensor once and holds what each engine confirms against what was sent.

    `stream_weights`, instead of the trainer's own, makes the pieces; engines that are started anew ask it again.
    Raises WeightSyncError if a tensor changed or is missing, or if an engine reports another version. An engine that
    has not confirmed refuses to generate.
    """
    loaded = rollout.load_weights(stream_weights or trainer.stream_weights, version)
    sent = trainer.published_manifest()
    for entries in loaded.values():
        compare_manifests(sent, entries, version)
