"""What a driver says of `train.kernels` before a run, and puts into its resolved configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from hybridflow.config.sections import TrainSection
from hybridflow.errors import ConfigError
from hybridflow.trainer import kernels
from hybridflow.trainer.kernels import resolve_worker

APEX = Path(__file__).parents[2] / "dist_cpu/stand_ins/apex"
ENGINE = Path(__file__).parents[2] / "dist_cpu/stand_ins/te"


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "NVIDIA", tmp_path / "none")
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def see_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "gpus").mkdir()
    monkeypatch.setattr(kernels, "NVIDIA", tmp_path / "gpus")


def test_without_a_gpu_auto_is_torch_whatever_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ENGINE))
    section, told = resolve_worker(TrainSection(num_steps=3))
    assert section == TrainSection(num_steps=3, kernels="torch")
    assert told == (
        'kernels (train.kernels = "auto"): Adam: torch, RMSNorm: torch, gradient accumulation: torch (not fused), '
        "attention: torch"
    )


def test_with_one_it_is_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    see_gpus(monkeypatch, tmp_path)
    assert resolve_worker(TrainSection())[0].kernels == "torch"
    monkeypatch.syspath_prepend(str(APEX))
    assert resolve_worker(TrainSection())[0].kernels == "apex"
    monkeypatch.syspath_prepend(str(ENGINE))
    section, told = resolve_worker(TrainSection())
    assert (section.kernels, section.attention) == ("transformer_engine", "auto")
    assert "Adam: Transformer Engine" in told and "attention: Transformer Engine" in told
    assert resolve_worker(TrainSection(kernels="torch"))[0].kernels == "torch"
    assert resolve_worker(section)[0] == section  # what was resolved stays
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_worker(TrainSection())[0].kernels == "torch"


def test_a_driver_without_a_gpu_leaves_it_to_the_nodes_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    section, told = resolve_worker(TrainSection())
    assert section.kernels == "auto" and "as installed on the nodes" in told


def test_a_named_one_that_is_missing_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r'^train.kernels = "apex": NVIDIA apex is not installed here .* Remedy: '):
        resolve_worker(TrainSection(kernels="apex"))
