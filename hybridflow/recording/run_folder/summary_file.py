"""summary.json, whatever the kind of run: what was installed, and how it gets onto the disk."""

from __future__ import annotations

import json
import logging
import shlex
import socket
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from hybridflow import __version__
from hybridflow.errors import CheckpointError
from hybridflow.recording.run_folder.next_command import this_command

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


def describe_process() -> dict[str, Any]:
    """Describe this process: version and commit of the code, machine, start, command line."""
    started = datetime.fromtimestamp(psutil.Process().create_time())
    return {
        "version": __version__,
        "commit": _commit(),
        "host": socket.gethostname(),
        "started": started.astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(this_command()),
    }


def _commit() -> str | None:
    """The commit of the checkout that this code runs from, with "+changes" where it was edited; None elsewhere."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "-c", "core.fsmonitor=false"]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Writes strict JSON.

    A disk that refuses must not hide what stopped a run: only for a finished one, as `summary["status"]` says, it
    raises CheckpointError; else the log says so.
    """
    try:
        path.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        if str(summary["status"]).startswith("finished"):
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
