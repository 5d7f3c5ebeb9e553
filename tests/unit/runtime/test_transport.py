"""Which runs exact resharding serves, where it puts engines, and what is said about the other runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from hybridflow.cluster.bundles import Place
from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError, PlacementError
from hybridflow.runtime.transport import choose_transport, num_slots, refuse_small_stores
from hybridflow.weights.reshard.settings import engine_slots, ranks_per_machine

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/models/tiny"


def config(*settings: str) -> Config:
    chosen = [f"model.path={TINY}", *settings]
    return load_config([ROOT / "configs/quickstart.toml"], chosen, Config)


def change_model(folder: Path, changes: dict[str, int]) -> None:
    (folder / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | changes))


@pytest.mark.parametrize("asked", ["auto", "exact"])
def test_a_run_that_it_can_serve_takes_exact_shards_beside_a_train_worker(asked: str) -> None:
    transport = choose_transport(config(f"rollout.weight_transport={asked}", "train.layout.tp=2"), TINY)
    assert transport.name == "exact"
    assert transport.placed == ((0,),)


@pytest.mark.parametrize("driver", [False, True])
@pytest.mark.parametrize("asked", ["auto", "exact"])
def test_exact_shards_are_the_default_on_gpus_too_whatever_the_driver_has(
    asked: str, driver: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: driver)
    transport = choose_transport(config(f"rollout.weight_transport={asked}"), TINY, has_cuda=True)
    assert (transport.name, transport.placed) == ("exact", ((0,),))


def test_what_only_a_cpu_pads_is_refused_once_the_slots_have_answered(tmp_path: Path) -> None:
    change_model(tmp_path, {"num_key_value_heads": 1})
    padded = config("rollout.weight_transport=exact", "train.layout={dp=2}", "rollout.tp_size=2")
    for has_cuda in (None, True):
        assert choose_transport(padded, tmp_path, has_cuda=has_cuda).name == "exact"
    with pytest.raises(ConfigError, match="on a CPU SGLang pads"):
        choose_transport(padded, tmp_path, has_cuda=False)


def test_hf_buckets_need_no_plan() -> None:
    transport = choose_transport(config("rollout.weight_transport=hf_buckets", "rollout.tp_size=4"), TINY)
    assert (transport.name, transport.exact, transport.placed) == ("hf_buckets", None, ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.layout.tp=1", "rollout.tp_size=2"], r"rollout\.tp_size = 2: .* train\.layout has 1"),
        (["rollout.sglang.quantization=fp8"], r"rollout\.sglang\.quantization = 'fp8'"),
        (["train.layout.tp=2", "train.layout.dp=3", "rollout.tp_size=4"], r"it must divide the 6 GPUs"),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_remedy_or_left_with_the_reason(
    settings: list[str], message: str
) -> None:
    more = ["train.prompts_per_step=18", "warmup.stages=[]"]
    with pytest.raises(ConfigError, match=rf"{message}.*rollout\.weight_transport = 'hf_buckets'"):
        choose_transport(config("rollout.weight_transport=exact", *settings, *more), TINY)
    transport = choose_transport(config(*settings, *more), TINY)
    assert transport.name == "hf_buckets"
    assert re.search(message, transport.reason)


@pytest.mark.parametrize(("asked", "name"), [("auto", "broadcast"), ("broadcast",) * 2, ("hf_buckets",) * 2])
def test_engines_on_devices_of_their_own_take_slots_behind_the_trainer(asked: str, name: str) -> None:
    engines = ("rollout.num_engines=2", "rollout.tp_size=2")
    own = config("rollout.own_devices=true", f"rollout.weight_transport={asked}", "train.layout.tp=2", *engines)
    transport = choose_transport(own, TINY)
    assert (transport.name, transport.placed, num_slots(own)) == (name, ((2, 3), (4, 5)), 6)
    assert num_slots(config("train.layout.tp=2", *engines)) == 4


@pytest.mark.parametrize(("transport", "own"), [("exact", "true"), ("broadcast", "false")])
def test_a_transport_that_needs_another_place_is_refused(transport: str, own: str) -> None:
    message = rf"rollout\.weight_transport = '{transport}' with rollout\.own_devices = {own}: exact shards"
    with pytest.raises(ConfigError, match=message):
        config(f"rollout.own_devices={own}", f"rollout.weight_transport={transport}")


@pytest.mark.parametrize(("nodes", "name"), [(None, "exact"), ("aaa", "exact"), ("aab", "hf_buckets")])
def test_engines_beyond_the_train_workers_have_to_see_their_memory(
    nodes: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    transport = choose_transport(config("train.layout.tp=2", "rollout.num_engines=3"), TINY, nodes)
    assert transport.name == name
    assert transport.exact or "rollout.num_engines = 3: train.layout has train workers beside 2" in transport.reason


def test_ranks_of_an_engine_are_where_most_of_their_weights_are(tmp_path: Path) -> None:
    """Training cuts matrices over four ranks, the engine over two: rank r needs quarters 2r and 2r + 1. On two nodes
    it stays on one of them."""
    change_model(tmp_path, {"num_key_value_heads": 4})
    settings = config("train.layout.tp=4", "rollout.tp_size=2")
    assert choose_transport(settings, tmp_path, "aaaa").placed == ((0, 2),)
    assert choose_transport(settings, tmp_path, "aabb").placed == ((0, 1),)


def test_engines_without_a_place_take_slots_in_order() -> None:
    assert engine_slots(3, 2) == ((0, 1), (2, 3), (4, 5))
    assert engine_slots(3, 2, ((0, 2), (1, 3))) == ((0, 2), (1, 3), (4, 5))


@pytest.mark.parametrize(
    ("machines", "size"), [("aaaa", 4), ("aabb", 2), ("aaab", 3), ("aaaabb", 4), ("abbb", 1), ("a", 1)]
)
def test_ranks_per_machine(machines: str, size: int) -> None:
    assert ranks_per_machine(machines) == size


@pytest.mark.parametrize(
    ("changes", "tp", "message"),
    [
        ({"intermediate_size": 96}, 2, r"intermediate_size = 96: .* multiple of 32 x rollout tp = 64"),
        ({"num_key_value_heads": 1}, 2, r"rollout tp = 2: on a CPU SGLang pads the model's 1 key-value heads"),
    ],
)
def test_what_sglang_pads_on_a_cpu_is_refused(changes: dict[str, int], tp: int, message: str, tmp_path: Path) -> None:
    change_model(tmp_path, changes)
    layout = "train.layout={dp=2}"
    with pytest.raises(ConfigError, match=rf"{message}.*rollout\.weight_transport = 'hf_buckets'"):
        choose_transport(config("rollout.weight_transport=exact", layout, f"rollout.tp_size={tp}"), tmp_path)


def test_buckets_go_between_nodes_only_where_their_object_stores_hold_what_is_on_the_way() -> None:
    """Pipeline stages 0 and 1 have two ranks each: ranks 0 and 2 send. Within a node no store is used."""

    def places(nodes: str, *stores_mib: int) -> list[Place]:
        stores = dict(zip(sorted(set(nodes)), stores_mib, strict=True))
        return [Place(node, f"address {node}", store_bytes=stores[node] * 2**20) for node in nodes]

    chosen = config("train.layout={tp=2,pp=2}", "rollout.weight_bucket_mib=8")
    refuse_small_stores(chosen, TINY, places("aaaa", 1))
    refuse_small_stores(chosen, TINY, places("aabb", 40, 40))
    with pytest.raises(PlacementError, match=r"buckets of 8 MiB\. Node address b needs room for 5 of them"):
        refuse_small_stores(chosen, TINY, places("aabb", 40, 39))
