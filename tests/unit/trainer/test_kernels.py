"""A driver's word on `train.kernels` before a run, and puts into its resolved configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from hybridflow.config.sections import Config, LayoutSection, ModelSection, TrainSection
from hybridflow.errors import ConfigError
from hybridflow.preflight.machine import check_kernels
from hybridflow.preflight.subject import Subject
from hybridflow.runtime.system import start_train_workers
from hybridflow.trainer import kernels
from hybridflow.trainer.group import PolicyGroup, PolicySettings
from hybridflow.trainer.kernels import refuse_float32, refuse_grouped_experts, resolve_worker
from hybridflow.trainer.layout import to_layout

if TYPE_CHECKING:
    from hybridflow.cluster.session import Slots

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
    named = TrainSection(kernels="apex", layout=LayoutSection(grouped_experts=True))
    assert resolve_worker(named)[0] == named
    refuse_grouped_experts(named, on_gpus=True)  # as the slots say; Transformer Engine is looked for by the workers
    with pytest.raises(ConfigError, match="it needs GPUs, and there are none"):
        refuse_grouped_experts(named, on_gpus=False)
    config = Config(model=ModelSection(path="nowhere"), train=named)
    assert [finding.level for finding in check_kernels(Subject(config))] == ["fact"]


def test_a_named_one_that_is_missing_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r'^train.kernels = "apex": NVIDIA apex is not installed here .* Remedy: '):
        resolve_worker(TrainSection(kernels="apex"))


def test_float32_on_gpus_is_refused_unless_forced() -> None:
    with pytest.raises(ConfigError, match=r'model.dtype = "float32" on GPUs: .* model.force_float32 = true'):
        refuse_float32("float32", forced=False, on_gpus=True)
    refuse_float32("float32", forced=True, on_gpus=True)
    refuse_float32("float32", forced=False, on_gpus=False)
    refuse_float32("bfloat16", forced=False, on_gpus=True)


def test_grouped_experts_need_gpus_and_transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    section = TrainSection(layout=LayoutSection(grouped_experts=True))
    assert to_layout(section.layout).grouped_experts
    with pytest.raises(ConfigError, match=r"it needs Transformer Engine, which .* Remedy: set train.layout"):
        refuse_grouped_experts(section, on_gpus=True)
    monkeypatch.syspath_prepend(str(ENGINE))
    with pytest.raises(ConfigError, match=r"train.layout.grouped_experts = true: it needs GPUs, and there are none"):
        refuse_grouped_experts(section, on_gpus=False)
    refuse_grouped_experts(section, on_gpus=True)
    refuse_grouped_experts(TrainSection(), on_gpus=False)


def test_workers_on_gpus_are_not_started_in_float32(tmp_path: Path) -> None:
    """Whoever the driver is: what counts is what the slots have."""
    slots = cast("Slots", SimpleNamespace(gpus_per_slot=1))
    with pytest.raises(ConfigError, match=r"model\.force_float32"):
        PolicyGroup(PolicySettings(TrainSection(), "float32", 0, None, force_float32=False), slots, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.force_float32"):
        start_train_workers(Config(model=ModelSection(path=str(tmp_path))), slots, tmp_path)


def test_check_tells_all_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    see_gpus(monkeypatch, tmp_path)
    train = TrainSection(layout=LayoutSection(grouped_experts=True))
    config = Config(model=ModelSection(path=str(tmp_path)), train=train)
    levels = [finding.level for finding in check_kernels(Subject(config))]
    assert levels == ["error", "error", "fact"]


def test_check_warns_of_a_library_for_gpus_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(APEX))
    config = Config(model=ModelSection(path=str(tmp_path)), train=TrainSection(kernels="apex"))
    (finding,) = check_kernels(Subject(config))
    assert finding.level == "warning" and "there is no GPU here. Remedy: " in finding.text
    see_gpus(monkeypatch, tmp_path)
    bfloat16 = config.model.model_copy(update={"dtype": "bfloat16"})
    (finding,) = check_kernels(Subject(config.model_copy(update={"model": bfloat16})))
    assert finding.level == "fact" and "Adam: Apex" in finding.text
