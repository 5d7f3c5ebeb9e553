"""A model with YaRN: its directory again with another config.json, which trainer and engines both read.

The keys are those of Hugging Face transformers: a factor, and the window that the model was trained on. All else of
YaRN (ramp, sharpening) has the defaults of Peng et al. 2023 (arXiv 2309.00071), which both sides take from the config.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from hybridflow.config.rope_rules import ROPE_KEYS
from hybridflow.errors import ConfigError

CONFIG_FILE = "config.json"


def write_stretched(source: Path, folder: Path, factor: float) -> Path:
    """Makes `folder` the model of `source` with its native window stretched by `factor`, and returns it.

    Files are hard links, or copies where the file system is another. A folder that is whole stays. Raises ConfigError
    where the model cannot be stretched.
    """
    if (folder / CONFIG_FILE).is_file():
        return folder
    stretched = stretch_config(json.loads((source / CONFIG_FILE).read_text(encoding="utf-8")), factor, str(source))
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != CONFIG_FILE:
            _take(path.resolve(), folder / path.name)
    unfinished = folder / f".{CONFIG_FILE}.unfinished"
    unfinished.write_text(json.dumps(stretched, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / CONFIG_FILE)
    return folder


def stretch_config(config: dict[str, Any], factor: float, named: str) -> dict[str, Any]:
    """The config with YaRN of this factor over its native window, in the keys that it has: newer or older ones.

    Raises ConfigError for a model that is stretched in another way already.
    """
    found = {key: rope for key in ROPE_KEYS if isinstance(rope := config.get(key), dict)}
    for key, rope in found.items():
        kind = rope.get("rope_type") or rope.get("type") or "default"
        if kind not in ("default", "yarn") or any(isinstance(value, dict) for value in rope.values()):
            raise ConfigError(
                f"{named}: {key} in config.json is {rope}: YaRN would stretch positions that are stretched another "
                "way, which neither trainer nor engines compute. Remedy: leave yarn_factor out of the phases"
            )
    theta = next(({"rope_theta": rope["rope_theta"]} for rope in found.values() if "rope_theta" in rope), {})
    yarn = {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": native_window(config)}
    key = "rope_parameters" if "rope_parameters" in found else "rope_scaling"
    return {name: value for name, value in config.items() if name not in found} | {key: theta | yarn}


def native_window(config: dict[str, Any]) -> int:
    """Tokens that the model was trained on, from the keys of a config.json."""
    ropes = [rope for key in ROPE_KEYS if isinstance(rope := config.get(key), dict)]
    natives = [one.get("original_max_position_embeddings") for one in (config, *ropes)]
    return int(next(filter(None, natives), None) or config["max_position_embeddings"])


def _take(path: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)
