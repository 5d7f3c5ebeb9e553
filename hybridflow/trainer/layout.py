"""Whether a model can be cut as the config asks. Imports no Megatron: the driver asks before any worker is there."""

from __future__ import annotations

from hybridflow.config.sections import LayoutSection
from hybridflow.errors import ConfigError
from megatron_ext.hf.config import UnsupportedModelError, read_hf_config
from megatron_ext.layout import Layout, LayoutError, check_layout


def to_layout(section: LayoutSection) -> Layout:
    return Layout(**section.model_dump())


def check_model_layout(hf_dir: str, section: LayoutSection) -> None:
    """Raises ConfigError if the model is of a kind that is not supported, or cannot be cut that way."""
    try:
        check_layout(to_layout(section), read_hf_config(hf_dir))
    except LayoutError as error:
        raise ConfigError(f"train.layout does not fit the model in {hf_dir}: {error}") from error
    except UnsupportedModelError as error:
        raise ConfigError(f"model.path = {hf_dir!r} cannot be trained: {error}") from error
