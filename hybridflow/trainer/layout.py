"""Checks that model, weights, checkpoint and layout fit each other.

Imports no Megatron and reads no weights: the driver asks before any worker is there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from hybridflow.config.sections import LayoutSection
from hybridflow.errors import CheckpointError, ConfigError
from hybridflow.reading import Unreadable, read_json
from megatron_ext.checkpoint.commit import BrokenCheckpointError
from megatron_ext.checkpoint.files import LinkError, refuse_links
from megatron_ext.checkpoint.identity import WrongModelError, check_checkpoint
from megatron_ext.hf.config import HFConfig, UnsupportedModelError
from megatron_ext.hf.files import WeightsError, check_hf_weights, read_model_config
from megatron_ext.parallel.layout import Layout, LayoutError, check_layout

GENERATION_FILE = "generation_config.json"
UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError)
"""Errors that transformers raises over a config.json that is missing, cut short, or has values of another kind."""


def to_layout(section: LayoutSection) -> Layout:
    return Layout(**section.model_dump())


def read_model(hf_dir: str | Path, named: str | None = None) -> HFConfig:
    """Read `hf_dir`/config.json. ConfigError if it cannot be read, is of a kind that is not supported, or the
    directory has a link that leads out of it.

    `named` is how the user gave the directory; as the key model.path where that is None. So in all functions here.
    """
    named = named or f"model.path = {str(hf_dir)!r}"
    if not (Path(hf_dir) / "config.json").is_file():
        raise ConfigError(f"{named}: no config.json there. Name a Hugging Face model directory")
    try:
        refuse_links(hf_dir)
        _check_generation(Path(hf_dir) / GENERATION_FILE, named)
        return read_model_config(hf_dir)
    except WeightsError as error:
        raise ConfigError(f"{named} does not hold the model: {error}") from error
    except LinkError as error:
        raise ConfigError(f"{named} cannot be used: {error}") from error
    except UnsupportedModelError as error:
        raise ConfigError(f"{named} cannot be used: {error}") from error
    except UNREADABLE as error:
        raise ConfigError(f"{named}: cannot read its config.json: {error}. Copy the directory again") from error


def _check_generation(path: Path, named: str) -> None:
    """Raises ConfigError for a file of which SGLang would read nothing, and say nothing: a text might never end."""
    if not path.is_file():
        return
    try:
        settings = read_json(path)
    except Unreadable as error:
        raise ConfigError(f"{named}: cannot read its {path.name}: {error}. Copy it again") from error
    ends = settings.get("eos_token_id") if isinstance(settings, dict) else settings
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not isinstance(settings, dict) or any(type(token_id) is not int for token_id in ends):
        raise ConfigError(
            f"{named}: eos_token_id = {ends!r:.60} in its {path.name}: it must be a token id, or a list of them"
        )


def check_model_layout(
    hf_dir: str | Path, section: LayoutSection, named: str | None = None, layout_named: str = "train.layout"
) -> HFConfig:
    """The model's config. ConfigError if it is not supported, or cannot be cut that way."""
    hf_config = read_model(hf_dir, named)
    try:
        check_layout(to_layout(section), hf_config)
    except LayoutError as error:
        raise ConfigError(f"{layout_named} does not fit the model in {hf_dir}: {error}") from error
    return hf_config


def check_vocabulary(tokenizer: Any, hf_config: HFConfig, named: str) -> None:
    """Raises ConfigError for a tokenizer with ids that the model has no embedding of: it grew, the model did not."""
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= hf_config.vocab_size:
        token = next(token for token, number in tokenizer.get_vocab().items() if number == largest)
        raise ConfigError(
            f"{named}: the tokenizer has ids up to {largest} ({token!r}), and the model's vocabulary (vocab_size in "
            f"config.json) has {hf_config.vocab_size} entries. Grow the model's embeddings (resize_token_embeddings of "
            "transformers), or take the tokenizer that belongs to it"
        )


def check_model_weights(hf_dir: str | Path, hf_config: HFConfig, named: str | None = None) -> None:
    """Raises ConfigError, naming it, for a tensor that is missing, misshapen or not of this model."""
    try:
        check_hf_weights(hf_dir, hf_config)
    except WeightsError as error:
        raise ConfigError(f"{named or f'model.path = {str(hf_dir)!r}'} does not hold the model: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(
            f"{named or f'model.path = {str(hf_dir)!r}'} has no weights: {error}. Copy them there"
        ) from error


def check_saved_weights(directory: Path, hf_config: HFConfig) -> str:
    """The dtype of a checkpoint's weights. CheckpointError for one that is not whole, or is of another model."""
    try:
        return check_checkpoint(directory, hf_config)
    except (BrokenCheckpointError, WrongModelError) as error:
        raise CheckpointError(str(error)) from error
