"""The environment of the processes of train workers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hybridflow.cluster.devices import DEVICE_ENVIRONMENT
from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.runtime.system import start_train_workers
from hybridflow.trainer import group

ROOT = Path(__file__).parents[3]


class Recorded:
    """Stands for `ray.remote(...)`, and keeps the environment of each actor."""

    def __init__(self) -> None:
        self.environments: list[dict[str, str]] = []

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def options(self, **given: Any) -> Recorded:
        self.environments.append(given["runtime_env"]["env_vars"])
        return self

    def remote(self, *_: Any) -> None: ...


@pytest.mark.parametrize("broadcasts", [False, True])
def test_who_broadcasts_allocates_as_sglang_does_and_the_configuration_has_the_last_word(
    broadcasts: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorded = Recorded()
    monkeypatch.setattr(group, "ray", SimpleNamespace(remote=lambda **_: recorded))
    monkeypatch.setattr(group, "identify", lambda name, *_, **__: name)
    slots = SimpleNamespace(gpus_per_slot=0, strategy=lambda index: index, on_one_node=True)
    for settings, threads in ([], "1"), (["cluster.environment.OMP_NUM_THREADS=7"], "7"):
        config = load_config([ROOT / "configs/quickstart.toml"], ["train.num_threads=1", *settings], Config)
        start_train_workers(config, slots, tmp_path, broadcasts=broadcasts)  # pyright: ignore[reportArgumentType]
        environment = recorded.environments[-1]
        assert environment.items() >= DEVICE_ENVIRONMENT.items()
        assert environment.get("NCCL_CUMEM_ENABLE") == ("0" if broadcasts else None)
        assert environment["OMP_NUM_THREADS"] == threads
