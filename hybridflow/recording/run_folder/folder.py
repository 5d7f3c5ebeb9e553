"""The folder of a run: how a new run never overwrites an old one, and how only the same run is continued."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from hybridflow.config.load import dump_resolved
from hybridflow.config.sections import RunSection
from hybridflow.errors import CheckpointError, ConfigError
from hybridflow.reading import Unreadable, read_json
from hybridflow.recording.run_folder.disk import explain_full
from hybridflow.recording.run_folder.driver_lock import DriverLock
from hybridflow.recording.run_folder.file_mode import file_mode
from hybridflow.recording.run_folder.next_command import go_on, this_command
from megatron_ext.checkpoint import commit


class RunConfig(Protocol):
    """A configuration with a section `run`."""

    @property
    def run(self) -> RunSection: ...


class RunFolder:
    """Paths inside `<run.directory>/<run.name>` that every kind of run has.

    A new run is made in a folder beside it, `.<run.name>.starting`, and takes its name in `keep`, when there is
    something to keep: a start that is refused, interrupted or killed never touches an earlier run. What it leaves
    there, its logs most of all, stays until the next start.
    """

    def __init__(self, config: RunConfig, may_change: tuple[str, ...]) -> None:
        """`may_change`: beginnings of the keys that a resumed run may set otherwise; all others decide its numbers."""
        self._directory = config.run.directory
        self._may_change = may_change
        self._mode = config.run.mode
        self._final = Path(config.run.directory) / config.run.name
        self._starting = self._final.with_name(f".{config.run.name}.starting")
        self.path = self._final

    @property
    def resolved(self) -> Path:
        return self.path / "resolved.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def initial_model(self) -> Path:
        return self.path / "initial_model"

    @property
    def hf_export(self) -> Path:
        return self.path / "hf"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the only driver of the run; ConfigError if there is another one. What it writes has `run.mode`.

        An exception that ends the run gets a note: where it goes on from, and by which command. Paths in its text are
        those that the run leaves. DiskFullError where a full disk is behind it.
        """
        with file_mode(self._mode), DriverLock(self._final):
            try:
                yield
            except KeyboardInterrupt as interrupt:
                interrupt.add_note(self._how_to_go_on())
                raise
            except BaseException as error:
                self._name_kept_paths(error)
                full = explain_full(error, self.path)
                (full or error).add_note(self._how_to_go_on())
                if full is not None:
                    raise full from error
                raise
            finally:
                self.close()

    def _name_kept_paths(self, error: BaseException) -> None:
        """The former path of a run that was kept, known to its workers, ends with it."""
        if self.path == self._final:
            former, kept = str(self._starting), str(self._final)
            error.args = tuple(part.replace(former, kept) if isinstance(part, str) else part for part in error.args)

    def refuse_second_driver(self) -> None:
        """Raises ConfigError if another process works on the run; writes nothing."""
        DriverLock(self._final).check()

    def _how_to_go_on(self) -> str:
        if self.path == self._starting:
            earlier = f" The earlier run in {self._final} is as it was." if self._final.exists() else ""
            logs = f" What its workers wrote until then is in {self.logs}." if self.logs.exists() else ""
            return f"The run did not begin.{earlier}{logs} Start it again:\n    {shlex.join(this_command())}"
        whole = commit.list_committed(self.checkpoints)
        latest = max(whole, key=lambda path: path.stat().st_mtime, default=None)
        return go_on(self.path, latest)

    def create(self, config: BaseModel) -> None:
        """Makes the folder of a new run, beside the one of its name, until `keep`.

        Raises ConfigError if the file system refuses.
        """
        try:
            self._forget_start()
            self._starting.mkdir(parents=True)
            self.path = self._starting
            dump_resolved(config, self.resolved)
        except OSError as error:
            raise self._refused(error) from error

    def keep(self) -> Path | None:
        """Gives the new run its name. A folder that has it is renamed, not deleted; returns its new path.

        Until `close` the former path leads to the new one: processes of the run know it.
        """
        moved: Path | None = None
        try:
            if self._final.exists():
                number = 1
                while (moved := self._final.with_name(f"{self._final.name}.{number}")).exists():
                    number += 1
                self._final.rename(moved)
            self._starting.rename(self._final)
            self._starting.symlink_to(self._final.name)
        except OSError as error:
            raise self._refused(error) from error
        self.path = self._final
        return moved

    def close(self) -> None:
        """Removes the former path of a run that was kept."""
        if self._starting.is_symlink():
            self._starting.unlink()

    def _forget_start(self) -> None:
        """Removes what an earlier start has left."""
        self.close()
        if self._starting.exists():
            shutil.rmtree(self._starting)

    def _refused(self, error: OSError) -> ConfigError:
        return ConfigError(f"run.directory = {self._directory!r}: cannot make the run folder {self._final}: {error}")

    def reopen(self, config: BaseModel) -> None:
        """Takes over the settings that may change, once `check_same_run` finds nothing else changed."""
        self.check_same_run(config)
        dump_resolved(config, self.resolved)

    def check_same_run(self, config: BaseModel) -> None:
        """Checks that `--resume` continues the run that is here.

        Raises CheckpointError if there is no run, and ConfigError if a setting differs that would change its numbers.
        """
        if not self.resolved.is_file():
            raise CheckpointError(f"nothing to resume: {self.path} holds no run. Start it without --resume")
        before = self.comparable(_flatten(self._read_resolved()))
        now = self.comparable(_flatten(config.model_dump(mode="json")))
        differing = [
            f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(self._may_change) and not _was_open(key, before)
        ]
        if differing:
            raise ConfigError(
                f"--resume of {self.path} with other settings:\n  "
                + "\n  ".join(differing)
                + "\nUse the same config and --set, or start another run with --set run.name=..."
            )

    def is_as_before(self, config: BaseModel, key: str) -> bool:
        """Whether `key` is what it was when the run began or was last resumed."""
        return _flatten(self._read_resolved()).get(key) == _flatten(config.model_dump(mode="json")).get(key)

    def comparable(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings of a run, by dotted key, with what an empty one stands for filled in."""
        return settings

    def _read_resolved(self) -> Any:
        try:
            return read_json(self.resolved)
        except (OSError, Unreadable) as error:
            raise CheckpointError(
                f"nothing to resume: {self.resolved} cannot be read: {error}. Restore it, or start without --resume"
            ) from error


def _was_open(key: str, before: dict[str, Any]) -> bool:
    """Whether the run left it to each worker's machine which kernels compute; what that was, nobody knows here."""
    return key in ("train.kernels", "train.attention") and before.get(key) in (None, "auto")


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested tables by dotted key; lists count as leaves."""
    if not isinstance(value, dict):
        return {prefix: value}
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return leaves
