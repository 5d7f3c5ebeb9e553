"""A checkpoint runs nothing: what its pickles ask for beyond Megatron's and torch's own classes is refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_ext.checkpoint_reader import check_objects, read_metadata
from megatron_ext.commit import BrokenCheckpointError
from megatron_ext.layout import Layout
from tests.dist_cpu import checkpoint_programs
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import write_model
from tests.security import hostile_checkpoints

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

SAYS = {
    "metadata_is_a_command": "asks for posix.system",
    "metadata_holds_a_command": "asks for builtins.eval",
    "metadata_of_a_rank": ".metadata cannot be read",
    "random_state": "asks for posix.system",
    "random_state_by_subprocess": "asks for subprocess.call",
    "random_state_of_old_format": "asks for posix.system",
    "random_state_is_a_script": "cannot be read",
    "random_state_is_a_text": "holds no random states",
    "extra_state": "asks for posix.system",
    "extra_state_for_another_unpickler": "holds a Tensor where nothing belongs",
    "weights": "asks for posix.system",
    "common_state": "asks for posix.system",
    "common_state_is_a_list": "common.pt holds a list and no state",
    "bytes_of_another_file": "in bytes of '../secret' that are not of this checkpoint",
    "unknown_backend": "metadata.json",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model("qwen3_tied", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    run_ranks(Layout(), checkpoint_programs.save_both_ways, model, folder)
    return folder / "foreground"


def test_what_a_stranger_planted_is_refused_and_never_runs(whole: Path, model: Path, tmp_path: Path) -> None:
    """With the optimizer, as `train --resume` loads, and without, as `export` does."""
    marker = tmp_path / "it_ran"
    attacks = hostile_checkpoints.build(whole, tmp_path / "attacks", marker)
    assert attacks.keys() == SAYS.keys()
    (resumed,) = run_ranks(Layout(), checkpoint_programs.refusals, model, list(attacks.values()))
    (exported,) = run_ranks(Layout(), checkpoint_programs.refusals_for_reading, list(attacks.values()))
    assert not marker.exists()
    for name, (message, unchanged), without_optimizer in zip(attacks, resumed, exported, strict=True):
        for said in (message, without_optimizer):
            assert said.startswith("BrokenCheckpointError: ") and SAYS[name] in said, (name, said)
        assert unchanged or name == "weights", name  # the last: torch reads each tensor by itself


def test_no_variable_of_the_environment_lifts_that(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "it_ran"
    for name, folder in hostile_checkpoints.build(whole, tmp_path / "attacks", marker).items():
        if name != "weights":
            with pytest.raises(BrokenCheckpointError, match=re.escape(SAYS[name])):
                check_objects(folder)
    assert not marker.exists()


def test_the_whole_one_is_read(whole: Path) -> None:
    check_objects(whole)
    metadata = read_metadata(whole)
    assert any(index.fqn == "embedding.word_embeddings.weight" for index in metadata.storage_data)
