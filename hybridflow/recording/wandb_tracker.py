"""Weights & Biases: a copy of the metrics, whose own process may die without costing the run or its curves."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil

from hybridflow.environment import needed, only
from hybridflow.errors import ConfigError
from hybridflow.recording.trackers import Tracker

_log = logging.getLogger(__name__)
MAX_STARTS = 4
NUM_KEPT = 64
"""Steps that are logged again to a process that took the place of another."""
LOOK_S = 0.5


class WandbTracker:
    """A Weights & Biases run. Offline (the default) it needs no account, asks nothing and touches no network:
    `wandb sync <directory>/wandb/offline-run-*` uploads it later.

    W&B's own process is started again when it has died, under the same run id, MAX_STARTS times: what it may not have
    written yet is logged once more, and W&B keeps the steps that it lacks.
    """

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
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._arguments: dict[str, Any] = {"project": project, "name": name, "config": config, "mode": mode}
        self._recent: deque[tuple[int, dict[str, float]]] = deque(maxlen=NUM_KEPT)
        self._num_starts = 0
        self._start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._recent.append((step, dict(metrics)))
        try:
            self._run.log(dict(metrics), step=step)
        except Exception as error:  # W&B has no class of its own for it
            self._start_again(error)

    def close(self) -> None:
        try:
            self._finish()
        except Exception as error:
            self._start_again(error)
            self._finish()
        _link_within(self._directory / "wandb")

    def _start(self) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, save_code=False, x_disable_stats=True
        )
        others = {process.pid for process in psutil.Process().children()}
        # Its own process gets all of the environment: no other service's token.
        with only(needed(os.environ, own_variables(self._directory))):
            self._run = wandb.init(
                id=_run_id(self._directory),
                resume="allow",
                dir=str(self._directory),
                settings=settings,
                reinit="create_new",
                **self._arguments,
            )
        _link_within(self._directory / "wandb")
        self._num_starts += 1
        self._service = [process for process in psutil.Process().children() if process.pid not in others]

    def _start_again(self, error: Exception) -> None:
        """Raises `error` where it has died too often."""
        import wandb

        with suppress(Exception, SystemExit):  # it tells the dead process to end, and exits with its code
            wandb.teardown(exit_code=1)
        if self._num_starts >= MAX_STARTS:
            raise error
        reason = str(error) or type(error).__name__
        _log.warning("W&B's own process has ended (%s): it is started again, and the run keeps its id", reason)
        self._start()
        for step, metrics in self._recent:
            self._run.log(metrics, step=step)

    def _finish(self) -> None:
        """Waits for W&B's process, however long it uploads, unless it is stopped: then it is killed, an error."""
        errors: list[Exception] = []

        def finish() -> None:
            try:
                self._run.finish()
            except Exception as error:  # raised below
                errors.append(error)

        thread = threading.Thread(target=finish, name="W&B's end", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK_S)
            for process in self._service:
                if thread.is_alive() and process.is_running() and process.status() == psutil.STATUS_STOPPED:
                    process.kill()
        if errors:
            raise errors[0]


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


def own_variables(directory: Path) -> dict[str, str]:
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
