"""Where the metrics of each step go: a JSONL file that is the record of the run, and Weights & Biases beside it.

A tracker has `log(step, metrics)` and `close()`. Metric names are `room/name`, values floats.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from hybridflow.environment import needed, only
from hybridflow.errors import ConfigError
from hybridflow.observability.step_lines import cut, find_end

_log = logging.getLogger(__name__)
_BLOCK_BYTES = 2**16


class Tracker(Protocol):
    """Takes the metrics of each step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonlTracker:
    """One JSON object per step and line, on disk when `log` returns: `{"step": 3, "reward/mean": 0.5}`.

    The file is strict JSON: a NaN or infinite value is null there, and its name is listed under "non_finite".
    A line half written by a crash is removed when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_half_line(path)
        self._stream = path.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        row: dict[str, Any] = {"step": step}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        non_finite = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
        if non_finite:
            row["non_finite"] = non_finite
        self._stream.write(json.dumps(row, allow_nan=False) + "\n")
        self._stream.flush()

    def truncate_after(self, step: int) -> None:
        """Forget the steps after `step`: a run resumed from its checkpoint does them again.

        Raises DataError if a whole line is no step of this file's form.
        """
        end = find_end(self._path, step, kind="metrics of a step")
        self._stream.close()
        cut(self._path, end)
        self._stream = self._path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._stream.close()


class WandbTracker:
    """A Weights & Biases run. Offline (the default) it needs no account, asks nothing and touches no network:
    `wandb sync <directory>/wandb/offline-run-*` uploads it later."""

    def __init__(
        self,
        directory: Path,
        name: str,
        config: dict[str, Any],
        mode: Literal["offline", "online"] = "offline",
        *,
        project: str = "hybridflow",
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # else it advertises itself where openai is imported
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_disable_stats=True
        )
        # Its own process gets all of the environment: no other service's token.
        with only(needed(os.environ, _own_variables(directory))):
            self._run = wandb.init(
                project=project,
                name=name,
                id=_run_id(directory),
                resume="allow",
                dir=str(directory),
                config=config,
                mode=mode,
                settings=settings,
                reinit="create_new",
            )
        self._folder = directory / "wandb"
        _link_within(self._folder)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
        _link_within(self._folder)


def _link_within(folder: Path) -> None:
    """Makes links within the folder relative: Weights & Biases writes whole paths, and a run's folder is renamed."""
    for path in folder.rglob("*"):
        if path.is_symlink() and (target := path.readlink()).is_relative_to(folder):
            path.unlink()
            path.symlink_to(os.path.relpath(target, path.parent))


def _run_id(directory: Path) -> str:
    """Id of the run there: the same each time it is resumed, so that it is one run for W&B, too."""
    path = directory / "wandb" / "run_id"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _own_variables(directory: Path) -> dict[str, str]:
    """Variables of Weights & Biases. What it would keep in the home directory is kept beside the run.

    Its settings and the user's login are read at home, where there is one.
    """
    state = directory / "wandb" / "state"
    own = {"WANDB_CACHE_DIR": str(state), "WANDB_DATA_DIR": str(state)}
    home = os.environ.get("HOME", "")
    if not (home and _can_write(home)):
        _log.warning("no home directory that can be written (HOME=%s): W&B keeps its files in the run folder", home)
        own["WANDB_CONFIG_DIR"] = str(state)
    for path in set(own.values()):
        Path(path).mkdir(parents=True, exist_ok=True)
    return own | {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def _can_write(directory: str) -> bool:
    """Tried: a file system may be read-only whatever the permissions say."""
    try:
        with tempfile.TemporaryDirectory(prefix=".hybridflow-", dir=directory):
            return True
    except OSError:
        return False


def start_wandb(
    mode: Literal["offline", "online", "disabled"], directory: Path, name: str, config: dict[str, Any], *, project: str
) -> list[Tracker]:
    """The tracker that `tracking.wandb` asks for, if any. ConfigError if Weights & Biases does not start."""
    if mode == "disabled":
        return []
    try:
        return [WandbTracker(directory, name, config, mode, project=project)]
    except Exception as error:
        raise ConfigError(
            f"tracking.wandb = {mode!r}: Weights & Biases does not start: {error}. "
            f'Install it and log in, or set tracking.wandb to "offline" or "disabled"'
        ) from error


class TrackerSet:
    """Logs to all trackers.

    A `required` tracker that fails stops the run: without its record the run is worth little. An `optional` one that
    fails is left out from then on, and a log line says so: a tracking service that is down must not cost a run.
    """

    def __init__(self, required: Sequence[Tracker], optional: Sequence[Tracker] = ()) -> None:
        self._required = list(required)
        self._optional = list(optional)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for tracker in self._required:
            tracker.log(step, metrics)
        for tracker in list(self._optional):
            try:
                tracker.log(step, metrics)
            except Exception as error:
                self._optional.remove(tracker)
                _log.warning("%s failed at step %d and is left out: %s", type(tracker).__name__, step, error)

    def close(self) -> None:
        """Close all; the first error of a required tracker is raised once every one was asked to close."""
        errors: list[Exception] = []
        for tracker in self._required:
            try:
                tracker.close()
            except Exception as error:
                errors.append(error)
        for tracker in self._optional:
            try:
                tracker.close()
            except Exception as error:
                _log.warning("%s could not close: %s", type(tracker).__name__, error)
        if errors:
            raise errors[0]


def _drop_half_line(path: Path) -> None:
    """Reads back from the end of the file to the last end of a line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            if (found := file.read(end - start).rfind(b"\n")) >= 0:
                cut(path, start + found + 1)
                return
            end = start
    cut(path, 0)
