"""SGLang's ranks with a round of shards, and what they confirm of it."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.errors import WeightSyncError
from hybridflow.rollout.engine.arguments import build_arguments
from hybridflow.rollout.sync import rank_loader
from hybridflow.rollout.sync.rank_loader import LOADER, load_shards
from hybridflow.weights.digest import digests
from hybridflow.weights.reshard.receipt import Receipt, ShardOrder, confirm
from hybridflow.weights.reshard.shard_bucket import checksums, cut_buffer, describe_shards


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
        self.proj = nn.Parameter(torch.zeros(3, 7, dtype=torch.bfloat16))


SHAPES: list[tuple[str, tuple[int, ...]]] = [("norm", (5,)), ("proj", (3, 7))]


class Round:
    """A round as an engine gives it, and its receipt."""

    def __init__(self, *, on_host: bool, number: int = 3) -> None:
        values = torch.randn(5 + 21, generator=torch.Generator().manual_seed(number))
        self.bytes_B, self.number = values.to(torch.bfloat16).view(torch.uint8), number
        self.receipt = Receipt()
        self.entries = describe_shards(list(cut_buffer(self.bytes_B, SHAPES, torch.bfloat16)), on_host=on_host)
        handle = self.receipt.open(len(SHAPES))
        self.order = ShardOrder(
            version=8, number=number, dtype="bfloat16", shapes=SHAPES, on_host=on_host, receipt=handle
        )

    def load(self, model: nn.Module) -> None:
        load_shards(model, [(msgspec.json.encode(self.order).decode(), self.bytes_B)])

    def check(self) -> None:
        self.receipt.check(8, self.number, self.entries, "rank 0 of the engine")


@pytest.mark.parametrize("on_host", [False, True])
def test_every_parameter_is_loaded_and_confirmed(on_host: bool) -> None:
    model, round_ = Model(), Round(on_host=on_host)
    with pytest.raises(WeightSyncError, match="rank 0 of the engine did not confirm round 3"):
        round_.check()
    round_.load(model)
    round_.check()
    assert torch.cat([model.norm.data, model.proj.data.view(-1)]).equal(round_.bytes_B.view(torch.bfloat16))
    held = [model.norm.detach(), model.proj.detach()]
    assert [entry.checksum for entry in round_.entries] == checksums(held, on_host=on_host)


@pytest.mark.parametrize("on_host", [False, True])
def test_a_parameter_that_is_held_otherwise_is_named(on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, round_ = Model(), Round(on_host=on_host)
    real = rank_loader.checksums

    def after_damage(tensors: list[torch.Tensor], *, on_host: bool) -> list[int]:
        tensors[1].view(torch.int16)[2, 6] ^= 1
        return real(tensors, on_host=on_host)

    monkeypatch.setattr(rank_loader, "checksums", after_damage)
    round_.load(model)
    with pytest.raises(WeightSyncError, match=r"8: proj of rank 0 of the engine, .* SGLang's rank has checksum \d+"):
        round_.check()


@pytest.mark.parametrize("damage", ["shape", "name", "dtype"])
def test_a_parameter_that_is_not_there_as_sent_is_named_and_ends_no_process(damage: str) -> None:
    model, round_ = Model(), Round(on_host=False)
    if damage == "shape":
        model.proj = nn.Parameter(torch.zeros(7, 3, dtype=torch.bfloat16))
    elif damage == "dtype":
        model.proj = nn.Parameter(torch.zeros(3, 7))
    else:
        del model.proj
    round_.load(model)
    what = "has checksum" if damage == "dtype" else "does not hold it"
    with pytest.raises(WeightSyncError, match=f"proj of rank 0 of the engine.*{what}"):
        round_.check()


def test_a_receipt_of_another_round_confirms_nothing() -> None:
    model, round_ = Model(), Round(on_host=False)
    round_.load(model)
    for version, number in ((8, 5), (9, 3)):
        with pytest.raises(WeightSyncError, match=f"did not confirm round {number}"):
            round_.receipt.check(version, number, round_.entries, "it")
    round_.receipt.open(len(SHAPES))
    with pytest.raises(WeightSyncError, match="did not confirm round 3"):
        round_.check()


def test_the_device_has_finished_before_the_rank_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The train worker writes into the same memory again once it has."""
    events: list[str] = []
    round_ = Round(on_host=False)
    with monkeypatch.context() as patch:
        patch.setattr(rank_loader, "wait_for", lambda device: events.append(f"waited for {device}"))
        patch.setattr(rank_loader, "confirm", lambda order, found: events.append("confirmed"))
        round_.load(Model())
    assert events == ["waited for cpu", "confirmed"]
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    rank_loader.wait_for(torch.device("cuda", 1))
    rank_loader.wait_for(torch.device("cpu"))
    assert waited == [torch.device("cuda", 1)]


def test_sglang_is_given_the_loader() -> None:
    assert build_arguments(RolloutSection(), dtype="float32", seed=0)["custom_weight_loader"] == [LOADER]
    assert f"{load_shards.__module__}.{load_shards.__name__}" == LOADER


def test_digests_of_64_bits_come_through() -> None:
    values = [digests([torch.full((3,), float(number))])[0] for number in range(8)]
    assert max(values) >= 2**63 > min(values)
    round_ = Round(on_host=False)
    order = msgspec.structs.replace(round_.order, receipt=round_.receipt.open(len(values)))
    confirm(order, values)
    entries = [msgspec.structs.replace(round_.entries[0], checksum=value) for value in values]
    round_.receipt.check(8, 3, entries, "it")
