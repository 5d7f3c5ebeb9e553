"""Which whole tensors are read back from SGLang, and what is said when one differs. Real SGLang: tests/stack_cpu."""

from __future__ import annotations

import hashlib

import pytest
import torch

from hybridflow.errors import WeightSyncError
from hybridflow.rollout.sync.verify import WholeTensorChecksums
from hybridflow.weights.broadcast import Broadcast, read_back_checksum
from hybridflow.weights.manifest import describe_tensor
from hybridflow.weights.reshard.shard_bucket import SAMPLE_PERIOD, Verify
from megatron_ext.platform.device import CPU, Device

KEPT = [f"model.layers.{layer}.norm.weight" for layer in range(40)]
FUSED = ["model.layers.0.qkv_proj.weight", "model.embed_tokens.weight"]


def update(whole: WholeTensorChecksums, version: int, **changed: str) -> set[str]:
    """An update of an engine of two ranks; returns what SGLang was asked for. Checksums are names backwards."""
    whole.begin(version)
    names = [*KEPT, "model.embed_tokens.weight", "model.layers.0.q_proj.weight"]
    sums = {name: name[::-1] for name in names}
    entries = [describe_tensor(name, torch.ones(1)) for name in names]
    whole.note(Broadcast(version=version, group="g", entries=entries, read_back=sums))
    asked = [name for name in KEPT + FUSED if name not in whole.names_to_skip]
    ranks = [{name: name[::-1] for name in asked} | {name: "cut" for name in FUSED if name in asked} for _ in range(2)]
    ranks[1] |= {name.replace("_", "."): value for name, value in changed.items()}
    whole.check(version, ranks)
    return set(asked)


def learnt(verify: Verify) -> WholeTensorChecksums:
    whole = WholeTensorChecksums(verify, CPU)
    assert update(whole, 0) == {*KEPT, *FUSED}
    return whole


def test_what_agrees_at_first_is_read_back_from_then_on() -> None:
    whole = learnt("all")
    assert update(whole, 1) == update(whole, 2) == set(KEPT)


def test_a_sample_comes_to_every_one() -> None:
    whole = learnt("sample")
    samples = [update(whole, version) for version in range(1, SAMPLE_PERIOD + 1)]
    assert all(len(sample) <= 3 for sample in samples)
    assert set().union(*samples) == set(KEPT)


def test_a_difference_names_tensor_and_rank() -> None:
    whole = learnt("all")
    message = r"version 1: after the update model\.layers\.7\.norm\.weight of rank 1 of the engine has .* checksum 0,"
    with pytest.raises(WeightSyncError, match=message):
        update(whole, 1, model_layers_7_norm_weight="0")


def test_what_was_broadcast_is_held_against_the_checksums_of_the_sender() -> None:
    tensors = {"norm": torch.arange(6.0).view(2, 3), "fused": torch.ones(3)}
    read_back = {name: read_back_checksum(tensor) for name, tensor in tensors.items()}
    assert read_back["norm"] == hashlib.sha256(tensors["norm"].numpy().tobytes()).hexdigest()[:16]
    entries = [describe_tensor(name, tensor) for name, tensor in tensors.items()]
    whole = WholeTensorChecksums("all", CPU)
    for version in range(3):
        whole.begin(version)
        whole.note(Broadcast(version=version, group="g", entries=entries, read_back=read_back))
        assert whole.is_verifying
        if version < 2:
            whole.check(version, [{"norm": read_back["norm"], "qkv": "1"}])
    with pytest.raises(WeightSyncError, match="version 2: after the update norm of rank 0"):
        whole.check(2, [{"norm": "0"}])


@pytest.mark.parametrize(("verify", "device"), [("none", CPU), ("all", Device(has_cuda=True))])
def test_nothing_is_read_back(verify: Verify, device: Device) -> None:
    whole = WholeTensorChecksums(verify, device)
    whole.begin(1)
    entries = [describe_tensor(name, torch.ones(1)) for name in KEPT]
    whole.note(Broadcast(version=1, group="g", entries=entries, read_back=dict.fromkeys(KEPT, "1")))
    assert not whole.is_verifying
