"""A checkpoint runs nothing: what its pickles ask for beyond Megatron's and torch's own classes is refused by name."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest
from torch.distributed.checkpoint import Metadata

from megatron_ext.checkpoint.commit import BrokenCheckpointError
from megatron_ext.checkpoint.reader import check_objects, read_metadata
from megatron_ext.parallel.layout import Layout
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
    "state_of_the_optimizer": "asks for builtins.eval",
    "weights_of_another_format": "holds no tensor",
    "weights_are_a_script": "asks for __torch__.torch.nn.modules",
    "common_state": "asks for posix.system",
    "common_state_is_a_list": "common.pt holds a list and no state",
    "bytes_of_another_file": "in bytes of '../secret' that are not of this checkpoint",
    "unknown_backend": "metadata.json",
    "file_of_no_name": "does not list the tensors",
    "place_of_no_number": "that are not of this checkpoint",
    "tensors_without_a_shape": "does not list the tensors",
    "tensors_without_parts": "does not list the tensors",
}
_METADATA = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
PROGRAMS = {
    "a_key_that_takes_hours_to_hash": (b"\x80\x04}" + b"K\x01\x85" + b"2\x86" * 40 + b"K\x01s.", "cannot be read"),
    "the_same_without_dup": (
        b"\x80\x04}" + b"K\x01\x85\x94" + b"".join(b"0h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"K\x01s.",
        "a tuple is no name of a tensor",
    ),
    "an_argument_that_does": (
        b"\x80\x04K\x01\x85\x94" + b"".join(b"0h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"0"
        b"ctorch.serialization\n_get_layout\nh\x3c\x85R.",
        "lists within one another",
    ),
    "gigabytes_of_memo": (b"\x80\x02Nr\x00\x00\x00\x10.", "does not list"),
    "gigabytes_of_text": (b"\x80\x04\x8e" + bytes([0] * 5 + [9, 0, 0]) + b"x.", "cannot be read"),
    "gigabytes_of_buffer": (b"\x80\x05\x96" + bytes([0] * 4 + [9, 0, 0, 0]) + b"x.", "cannot be read"),
    "attributes_of_a_class": (
        b"\x80\x02" + _METADATA + b"(N}X\x08\x00\x00\x00__hash__K\x01stb.",
        "attributes of a type",
    ),
    "attributes_of_a_function": (
        b"\x80\x02ctorch.serialization\n_get_layout\n(N}X\x0c\x00\x00\x00__defaults__K\x01stb.",
        "attributes of a function",
    ),
    "a_name_beyond_a_class": (
        b"\x80\x04\x8c\x25torch.distributed.checkpoint.metadata\x8c\x11Metadata.__init__\x93.",
        r"asks for torch\.distributed\.checkpoint\.metadata\.Metadata\.__init__",
    ),
    "python_2": (b"(ios\nsystem\n.", "asks for os.system"),
    "an_object_of_python_2": (b"(cos\nsystem\nS'x'\no.", "asks for os.system"),
    "keywords": (b"\x80\x04cbuiltins\neval\n)}\x92.", "asks for builtins.eval"),
    "a_persistent_id": (b"\x80\x02K\x01Q.", "cannot be read"),
    "an_extension": (b"\x80\x02\x82\x01.", "cannot be read"),
    "a_long_name": (b"\x80\x04cos\n" + b"x" * 10**6 + b"\n.", f"asks for os.{'x' * 197}, which"),
    "nothing": (b"", "cannot be read"),
}
"""Attempts that a `.metadata` of allowed classes can still make, as opcodes."""


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
        assert unchanged, name


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_pickle_cannot_cost_hours_or_gigabytes_or_change_a_class(name: str, tmp_path: Path) -> None:
    program, said = PROGRAMS[name]
    (tmp_path / ".metadata").write_bytes(program)
    before, attributes = resource.getrusage(resource.RUSAGE_SELF), dict(vars(Metadata))
    with pytest.raises(BrokenCheckpointError, match=said) as refused:
        read_metadata(tmp_path)
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime - before.ru_utime < 2 and after.ru_maxrss - before.ru_maxrss < 100 * 1024
    assert dict(vars(Metadata)) == attributes and len(str(refused.value)) < 1000


def test_no_variable_of_the_environment_lifts_that(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "it_ran"
    for name, folder in hostile_checkpoints.build(whole, tmp_path / "attacks", marker).items():
        with pytest.raises(BrokenCheckpointError, match=re.escape(SAYS[name])):
            check_objects(folder)
    assert not marker.exists()


def test_the_whole_one_is_read(whole: Path) -> None:
    check_objects(whole)
    metadata = read_metadata(whole)
    assert any(index.fqn == "embedding.word_embeddings.weight" for index in metadata.storage_data)
