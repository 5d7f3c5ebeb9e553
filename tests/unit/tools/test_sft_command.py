"""`hybridflow sft` with something wrong: one message, exit code 1, before Ray is started or an earlier run is moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.load import dump_resolved, load_config
from hybridflow.policy.init import write_policy
from hybridflow.recording.run_folder.folder import RunFolder
from hybridflow.tools.sft_config import SftConfig
from hybridflow.tools.sft_start import MAY_CHANGE_ON_RESUME
from tests.unit.tools.conftest import Refuse
from tests.unit.tools.test_export_command import write_checkpoint

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs/models/tiny"
CONFIG = ROOT / "configs/sft.toml"
TURNS = [{"role": "user", "content": "What is the rate ?"}, {"role": "assistant", "content": "It is rate_7 ."}]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": TURNS}) + "\n" for _ in range(3)))
    return path


@pytest.fixture
def settings(tmp_path: Path, data: Path) -> list[str]:
    return [f"run.directory={tmp_path / 'runs'}", f"model.path={TINY}", f"data.path={data}", "train.num_steps=9"]


@pytest.fixture
def sft(refuse: Refuse, tmp_path: Path, settings: list[str]) -> Callable[..., str]:
    """Runs the command, which must refuse and change nothing."""

    def run(*overrides: str, options: tuple[str, ...] = ()) -> str:
        before = snapshot(tmp_path / "runs")
        message = refuse("sft", "--config", CONFIG, *options, "--set", *settings, *overrides)
        assert snapshot(tmp_path / "runs") == before
        return message

    return run


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def earlier_run(settings: list[str], *overrides: str) -> RunFolder:
    """The folder of a run with these settings, that has done something."""
    config = load_config([CONFIG], [*settings, *overrides], SftConfig)
    folder = RunFolder(config, MAY_CHANGE_ON_RESUME)
    dump_resolved(config, folder.resolved)
    folder.metrics.write_text('{"step": 1}\n')
    return folder


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.num_stps=5", "did you mean 'num_steps'?"),
        ("train.learning_rate=0", "give a value above 0"),
        ("train.layout.tp=3", "train.layout does not fit the model in"),
        ("train.layout.tp=3", "tp = 3: it must divide the model's 4 attention heads; choose one of 1, 2"),
        ("train.layout.ep=2", "ep x etp = 2 x 1 = 2: it must divide the 1 ranks of a pipeline stage"),
        ("train.max_tokens_per_micro_batch=100", "data.max_tokens (4096) is above train.max_tokens_per_micro_batch"),
        ("model.init=weights", "has no safetensors. Download the weights, or set model.init = \"seeded\""),
        ("model.path=none", "model.path = 'none': no config.json there"),
        ("data.path=none.jsonl", "none.jsonl: no such file"),
        ("data.max_tokens=9", "the conversation has 19 tokens, the window data.max_tokens is 9. Remedy: raise it"),
        ("train.lr_warmup_steps=99", "train.lr_schedule: total_steps = 9: a cosine schedule with warmup_steps = 99"),
    ],
)  # fmt: skip
def test_a_setting_that_does_not_fit(sft: Callable[..., str], override: str, said: str) -> None:
    assert said in sft(override)


def test_a_window_above_the_model(sft: Callable[..., str]) -> None:
    window = json.loads((TINY / "config.json").read_text())["max_position_embeddings"]
    message = sft(f"data.max_tokens={window + 1}", f"train.max_tokens_per_micro_batch={window + 1}")
    assert f"data.max_tokens = {window + 1} is above the model's window of {window} tokens" in message


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": TURNS[:1]}, "a conversation goes from a user message to an assistant's; got roles ['user']"),
        ({"messages": [*TURNS, {"role": "assistant", "content": ""}]}, "messages[2]"),
        ({"text": "It is rate_7 ."}, "neither 'messages' (a conversation) nor 'prompt' is there"),
    ],
)
def test_a_row_that_is_no_demonstration(sft: Callable[..., str], data: Path, row: dict[str, Any], said: str) -> None:
    with data.open("a") as file:
        file.write(json.dumps(row) + "\n")
    message = sft()
    assert f"{data}, line 4, row 3" in message and said in message and "Remedy: " in message


def test_a_model_that_cannot_be_trained(sft: Callable[..., str], models: dict[str, Path], tmp_path: Path) -> None:
    window = "data.max_tokens=200"
    assert "no tokenizer files there" in sft(f"model.path={models['llama']}", "model.init=weights", window)
    broken = tmp_path / "broken"
    shutil.copytree(models["llama"], broken)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"intermediate_size": 98}))
    message = sft(f"model.path={broken}", "model.init=weights", window)
    assert "has shape [64, 96], the config implies [64, 98]" in message or "[96, 64], the config implies [98" in message


# ---------------------------------------------------------------------------------------------------------- resume


def test_a_run_that_is_refused_leaves_an_earlier_one_alone(sft: Callable[..., str], settings: list[str]) -> None:
    earlier_run(settings)
    sft("data.path=none.jsonl")


def test_nothing_to_resume(sft: Callable[..., str], settings: list[str], tmp_path: Path) -> None:
    message = sft(options=("--resume",))
    assert f"nothing to resume: {tmp_path / 'runs/sft'} holds no run. Start it without --resume" in message
    folder = earlier_run(settings)
    assert f"no checkpoint in {folder.checkpoints}: start the run without --resume" in sft(options=("--resume",))


def test_resume_with_other_settings(sft: Callable[..., str], settings: list[str]) -> None:
    earlier_run(settings, "train.learning_rate=0.001")
    message = sft("train.learning_rate=0.5", "train.num_steps=7", options=("--resume",))
    assert "train.learning_rate: was 0.001, is 0.5" in message and "num_steps" not in message


def test_resume_from_a_checkpoint_of_another_model(
    sft: Callable[..., str], settings: list[str], models: dict[str, Path]
) -> None:
    folder = earlier_run(settings)
    write_checkpoint(folder.checkpoints / "step-000001", models["llama"])
    message = sft(options=("--resume",))
    assert f"{folder.checkpoints / 'step-000001/megatron'} is a checkpoint of another model" in message
    assert "model_type = 'llama' in the checkpoint, 'qwen3' in the model" in message


def test_resume_from_a_truncated_checkpoint(sft: Callable[..., str], settings: list[str], tmp_path: Path) -> None:
    folder = earlier_run(settings)
    write_policy(TINY, tmp_path / "model", seed=0)
    saved = write_checkpoint(folder.checkpoints / "step-000001", tmp_path / "model")
    file = saved / "megatron/__0_0.distcp"
    file.write_bytes(file.read_bytes()[:3])
    assert f"{file} has 3 bytes, but 7 were written: it is truncated" in sft(options=("--resume",))
