"""Which layouts exact resharding serves, and what is said about the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.control.transport import exact_settings
from hybridflow.errors import ConfigError
from hybridflow.weights.reshard.settings import engines_in_order, ranks_per_machine

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/models/tiny"


def config(*settings: str) -> Config:
    chosen = ["rollout.weight_transport=exact", f"model.path={TINY}", *settings]
    return load_config([ROOT / "configs/quickstart.toml"], chosen, Config)


def test_an_engine_is_beside_its_train_worker() -> None:
    settings = exact_settings(config("train.layout.tp=2"), TINY)
    assert settings is not None
    assert settings.engines == ((0,),)


def test_hf_buckets_need_no_plan() -> None:
    assert exact_settings(config("rollout.weight_transport=hf_buckets", "rollout.tp_size=4"), TINY) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.layout.tp=1", "rollout.tp_size=2"], r"rollout\.tp_size = 2: .* train\.layout has 1"),
        (["rollout.sglang.quantization=fp8"], r"rollout\.sglang\.quantization = 'fp8'"),
        (["train.layout.tp=2", "train.layout.dp=3", "rollout.tp_size=4"], r"it must divide the 6 GPUs"),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_remedy(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"{message}.*rollout\.weight_transport = 'hf_buckets'"):
        exact_settings(config(*settings, "train.prompts_per_step=18", "warmup.stages=[]"), TINY)


def test_engines_without_a_train_worker_are_left_to_those_that_have_one() -> None:
    assert engines_in_order(3, 2, 4) == ((0, 1), (2, 3))
    assert engines_in_order(1, 2, 4) == ((0, 1),)


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
def test_what_sglang_pads_on_a_cpu_is_refused(
    changes: dict[str, int], tp: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | changes))
    layout = "train.layout={dp=2}"
    with pytest.raises(ConfigError, match=rf"{message}.*rollout\.weight_transport = 'hf_buckets'"):
        exact_settings(config(layout, f"rollout.tp_size={tp}"), tmp_path)
