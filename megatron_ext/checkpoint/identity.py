"""The identity of a model: written into each checkpoint, compared before one is loaded. No Megatron here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from megatron_ext.checkpoint import commit
from megatron_ext.checkpoint.commit import BrokenCheckpointError
from megatron_ext.hf.config import HFConfig

MODEL_KEY, DTYPE_KEY = "model", "dtype"
"""Where a checkpoint's manifest says what model it is of, and the dtype of its weights."""
MAY_DIFFER = ("max_position_embeddings", "rope_theta", "rope_scaling")
"""Properties of a model that a later phase of training may change: its window, and how positions are scaled to it."""


class WrongModelError(ValueError):
    """A checkpoint belongs to another model. The message names what differs."""


def describe_model(hf_config: HFConfig) -> dict[str, Any]:
    """Properties that tell models apart, as JSON gives them back."""
    properties = json.loads(json.dumps(dataclasses.asdict(hf_config)))  # lists for tuples
    return {key: value for key, value in properties.items() if key not in MAY_DIFFER}


def check_model(saved: dict[str, Any], present: dict[str, Any], directory: str | Path) -> None:
    """Raises WrongModelError naming each property in which the models differ."""
    differing = [
        f"{key} = {saved.get(key)!r} in the checkpoint, {present.get(key)!r} in the model"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    ]
    if differing:
        raise WrongModelError(
            f"{directory} is a checkpoint of another model: {'; '.join(differing)}. Name a checkpoint of this model, "
            "or open the model it was made from"
        )


def check_checkpoint(directory: str | Path, hf_config: HFConfig) -> str:
    """Finds out, reading no weights, whether the checkpoint is whole and of this model; returns its dtype.

    Raises BrokenCheckpointError for a file that is missing or has another size, WrongModelError for another model.
    """
    commit.check_sizes(directory)
    description = commit.read_manifest(directory).description
    if MODEL_KEY not in description or DTYPE_KEY not in description:
        raise BrokenCheckpointError(
            f"{Path(directory) / commit.MANIFEST_NAME} does not say of which model it is: it is no checkpoint of "
            "weights; name one"
        )
    check_model(description[MODEL_KEY], describe_model(hf_config), directory)
    return description[DTYPE_KEY]
