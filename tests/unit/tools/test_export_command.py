"""`hybridflow export` with something wrong: one message, exit code 1, nothing written, before Ray is started.

The checkpoints have everything but Megatron's own content, which only workers read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.identity import DTYPE_KEY, MODEL_KEY, describe_model
from megatron_ext.hf.config import read_hf_config
from tests.unit.tools.conftest import Refuse

CONTENT = b"weights"


def write_checkpoint(path: Path, model: Path, described: Path | None = None) -> Path:
    """A whole checkpoint of `model`, whose manifest says that it is of `described`."""
    folder = path / "megatron"
    shutil.copytree(model, folder / "hf", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "__0_0.distcp").write_bytes(CONTENT)
    description = {MODEL_KEY: describe_model(read_hf_config(described or model)), DTYPE_KEY: "float32"}
    write_manifest(folder, description)
    (path / "state.json").write_text("{}")
    write_manifest(path, {})
    return path


def write_manifest(folder: Path, description: dict[str, object]) -> None:
    files = commit.measure_files(folder, commit.list_files(folder))
    commit.write_manifest(folder, files=files, description=description)


@pytest.fixture
def checkpoint(models: dict[str, Path], tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "run" / "checkpoints" / "rl-000003", models["llama"])


@pytest.fixture
def export(refuse: Refuse, tmp_path: Path) -> Refuse:
    """Runs the command, which must refuse and leave no output."""

    def run(checkpoint: Path, *options: object) -> str:
        message = refuse("export", "--checkpoint", checkpoint, "--output", tmp_path / "new" / "hf", *options)
        assert not (tmp_path / "new").exists()
        return message

    return run


def test_a_folder_that_is_no_checkpoint(export: Refuse, checkpoint: Path, tmp_path: Path) -> None:
    run = checkpoint.parents[1]
    message = export(run)
    assert f"--checkpoint {run} is no checkpoint: it has no megatron/manifest.json" in message
    assert f"Checkpoints below it: {checkpoint}" in message
    assert "is no checkpoint" in export(tmp_path / "none")


def cut(folder: Path) -> None:
    (folder / "megatron" / "__0_0.distcp").write_bytes(CONTENT[:-1])


def lose(folder: Path) -> None:
    (folder / "megatron" / "__0_0.distcp").unlink()


def lose_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def change_manifest(folder: Path) -> None:
    manifest = folder / "megatron" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("float32", "float33"))


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "__0_0.distcp has 6 bytes, but 7 were written: it is truncated or overwritten; restore it, or remove"),
        (lose, "__0_0.distcp is missing: restore it, or remove this checkpoint and use an earlier one"),
        (lose_state, "state.json is missing: restore it"),
        (change_manifest, "megatron/manifest.json has CRC-32"),
        (empty_manifest, "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint(export: Refuse, checkpoint: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(checkpoint)
    message = export(checkpoint)
    assert message.startswith("error: CheckpointError") and said in message


def test_a_checkpoint_of_another_model(export: Refuse, models: dict[str, Path], tmp_path: Path) -> None:
    """Someone has put another model's config.json beside the weights."""
    mixed = write_checkpoint(tmp_path / "mixed", models["qwen3_tied"], described=models["llama"])
    message = export(mixed)
    assert f"{mixed / 'megatron'} is a checkpoint of another model: " in message
    assert "model_type = 'llama' in the checkpoint, 'qwen3' in the model" in message


def test_a_config_that_cannot_be_read(export: Refuse, models: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(models["llama"], model)
    config = json.loads((model / "config.json").read_text()) | {"model_type": "gemma3"}
    (model / "config.json").write_text(json.dumps(config))
    path = write_checkpoint(tmp_path / "a", model, described=models["llama"])
    assert f"--checkpoint {path} cannot be used: model_type = 'gemma3': supported are" in export(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tp", 3], "tp = 3: it must divide the model's 4 attention heads; choose one of 1, 2"),
        (["--pp", 3], "pp = 3: it must divide the model's 4 layers"),
        (["--ep", 2], "ep = 2: model_type = 'llama' has no experts"),
        (["--tp", 0], "--tp 0: a parallel size must be at least 1"),
        (["--num-threads", 0], "--num-threads 0: a worker needs at least 1 thread"),
    ],
)
def test_a_layout_that_does_not_fit(export: Refuse, checkpoint: Path, options: list[object], said: str) -> None:
    assert said in export(checkpoint, *options)


def test_an_output_that_is_taken(refuse: Refuse, checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", "--checkpoint", checkpoint, "--output"]
    assert f"--output {tmp_path} is not empty. Name another folder, or give --overwrite" in refuse(*command, tmp_path)
    file = tmp_path / "file"
    file.write_text("")
    assert f"--output {file} is a file. Name a folder" in refuse(*command, file, "--overwrite")
    assert f"{file} is a file. Name another folder" in refuse(*command, file / "hf")
    assert "is in the checkpoint, which must stay as it is" in refuse(*command, checkpoint / "megatron/new")
    assert "is in the checkpoint, which must stay as it is" in refuse(*command, checkpoint, "--overwrite")
