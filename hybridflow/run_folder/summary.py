"""summary.json, whatever the kind of run: what was installed, and how it gets onto the disk."""

from __future__ import annotations

import json
import logging
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hybridflow.errors import CheckpointError

logger = logging.getLogger(__name__)

PACKAGES = {
    "torch": "torch",
    "megatron_core": "megatron-core",
    "sglang": "sglang",
    "ray": "ray",
    "pyzmq": "pyzmq",
    "wandb": "wandb",
    "transformers": "transformers",
}


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Writes strict JSON. A disk that refuses must not hide what stopped a run: only a finished one raises

    CheckpointError; of another the log says so. `summary["status"]` tells which it is.
    """
    try:
        path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        if summary["status"] == "finished":
            raise CheckpointError(f"the run is finished, but {path} cannot be written: {error}") from error
        logger.warning("cannot write %s: %s", path, error)


def installed_versions() -> dict[str, str | None]:
    """Version of each package that decides numbers; None for one that is not installed."""
    return {name: _version(package) for name, package in PACKAGES.items()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
