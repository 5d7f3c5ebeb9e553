"""A link in a checkpoint or model that leads out of its folder is refused, and what it pointed at is never copied."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from transformers import Qwen3Config

from hybridflow.errors import CheckpointError, ConfigError
from hybridflow.policy.init import write_policy
from hybridflow.tools.export import find_weights
from hybridflow.trainer.layout import read_model
from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError
from megatron_ext.checkpoint.files import LinkError, copy_file, refuse_links

SECRET = "a private key\n"
TINY = Path(__file__).parents[2] / "configs/models/tiny"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "id_rsa"
    path.parent.mkdir()
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Without weights: links are looked for before anything is read."""
    folder = tmp_path / "checkpoint"
    (folder / "megatron" / "hf").mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    Qwen3Config().save_pretrained(folder / "megatron" / "hf")
    fit(folder)
    return folder


def fit(folder: Path) -> None:
    for part in (folder / "megatron", folder):
        (part / "manifest.json").unlink(missing_ok=True)
        commit.write_manifest(part, files=commit.measure_files(part, commit.list_files(part)), description={})


@pytest.mark.parametrize("place", ["megatron/hf/notes.txt", "megatron/common.pt", "extra.bin", "megatron/hf/sub/notes"])
def test_a_checkpoint_with_a_link_to_another_folder_is_refused(checkpoint: Path, secret: Path, place: str) -> None:
    """Also where the manifests list it, with the right size and checksum."""
    link = checkpoint / place
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(secret)
    fit(checkpoint)
    with pytest.raises(CheckpointError, match=f"{link} is a link to {secret}, which is outside"):
        find_weights(checkpoint)


def test_a_linked_folder_is_a_link_too(checkpoint: Path, secret: Path) -> None:
    moved = shutil.move(checkpoint / "megatron" / "hf", secret.parent / "hf")
    (checkpoint / "megatron" / "hf").symlink_to(moved)
    fit(checkpoint)
    with pytest.raises(CheckpointError, match="hf is a link to"):
        find_weights(checkpoint)


def test_a_checkpoint_may_be_named_by_a_link_and_link_within_itself(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "same.json").symlink_to("state.json")
    fit(checkpoint)
    (tmp_path / "latest").symlink_to(checkpoint)
    assert find_weights(tmp_path / "latest") == tmp_path / "latest" / "megatron"


def test_links_that_lead_back_have_an_end(checkpoint: Path, tmp_path: Path) -> None:
    """Two links to their own folder make 2^40 paths; a link to itself leads nowhere."""
    for name in ("a", "b"):
        (checkpoint / "megatron" / "hf" / name).symlink_to(".")
    with pytest.raises(CheckpointError, match="hf/a is not in"):
        find_weights(checkpoint)
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").symlink_to("notes.txt")
    with pytest.raises(ConfigError, match="leads back to itself"):
        read_model(tmp_path / "model", "--model x")
    with pytest.raises(ConfigError, match="leads back to itself"):
        write_policy(tmp_path / "model", tmp_path / "out", seed=0)


def test_a_manifest_cannot_name_a_file_of_another_folder(checkpoint: Path, secret: Path) -> None:
    entry = commit.measure_files(secret.parent, ["id_rsa"])["id_rsa"]
    files = commit.read_manifest(checkpoint).files | {f"../home/{secret.name}": entry}
    commit.write_manifest(checkpoint, files=files, description={})
    with pytest.raises(BrokenCheckpointError, match=r"names '../home/id_rsa', which is outside"):
        commit.check_sizes(checkpoint)


@pytest.mark.parametrize(
    "name", ["notes.txt", "chat_template.jinja", "model.safetensors", "config.json", "sub/vocab.json"]
)
def test_a_model_with_a_link_to_another_folder_is_refused(tmp_path: Path, secret: Path, name: str) -> None:
    model = tmp_path / "model"
    Qwen3Config().save_pretrained(model)
    (model / "sub").mkdir()
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(os.path.relpath(secret, (model / name).parent))
    with pytest.raises(ConfigError, match=r"is a link to .*id_rsa, which is outside"):
        read_model(model, "--model x")


def test_files_of_a_hugging_face_cache_are_links_to_their_blobs(tmp_path: Path, secret: Path) -> None:
    home = tmp_path / "models--a--b"
    snapshot = home / "snapshots" / "0123"
    (home / "blobs").mkdir(parents=True)
    Qwen3Config().save_pretrained(home / "blobs")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/config.json")
    assert read_model(snapshot, "--model x").model_type == "qwen3"
    (snapshot / "notes.txt").symlink_to(secret)
    with pytest.raises(ConfigError, match="which is outside"):
        read_model(snapshot, "--model x")


def test_the_copy_itself_follows_no_such_link(tmp_path: Path, secret: Path) -> None:
    """A link that appears between the check and the copy."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.txt").symlink_to(secret)
    with pytest.raises(LinkError):
        copy_file(tmp_path / "model" / "a.txt", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_folder_without_links_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    refuse_links(tmp_path)


def test_drawing_a_model_copies_no_linked_file(tmp_path: Path, secret: Path) -> None:
    shutil.copytree(TINY, tmp_path / "tiny")
    (tmp_path / "tiny" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "tiny" / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(ConfigError, match="is not followed"):
        write_policy(tmp_path / "tiny", tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()
