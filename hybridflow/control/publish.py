"""SYNC: the trainer's weights become the engines' weights."""

from __future__ import annotations

from hybridflow.protocols import Rollout, Trainer
from hybridflow.weights.manifest import compare_manifests


def publish_weights(trainer: Trainer, rollout: Rollout, version: int) -> None:
    """Streams every tensor once and holds what each engine confirms against what was sent.

    Raises WeightSyncError if a tensor changed or is missing, or if an engine reports another version. An engine that
    has not confirmed refuses to generate.
    """
    loaded = rollout.load_weights(trainer.stream_weights, version)
    sent = trainer.published_manifest()
    for entries in loaded.values():
        compare_manifests(sent, entries, version)
