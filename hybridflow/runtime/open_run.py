"""The frame of a run that trains, `train` and `sft` alike: folder, first weights, trackers, status, summary.

with open_run(config, folder, display, find_saved) as opened:      the folder is this driver's
    hf_dir = opened.first_weights(config.model, config.run.seed)
    trackers = opened.begin_record(config.tracking, ...)           metrics go to their files
    with <workers of the run>:
        opened.take_name()                                         an earlier run of the name makes room
        with opened.summarised(...):                               summary.json is written however this ends
            <train>
                                                                   all has ended: the table is shown
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from hybridflow.config.sections import ModelSection, TrackingSection
from hybridflow.policy.init import write_policy
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.resources import PeakMemory
from hybridflow.recording.run_folder.folder import RunFolder
from hybridflow.recording.run_folder.summary_file import describe_process, write_summary
from hybridflow.recording.trackers import JsonlTracker, TrackerSet
from hybridflow.recording.wandb_tracker import start_wandb

State = TypeVar("State")

MEMORY_PERIOD_S = 2.0


@dataclass(frozen=True)
class Saved(Generic[State]):
    """A checkpoint that was found whole, and what the run remembered then."""

    checkpoint: Path
    state: State
    steps_done: str
    """As the user is told: "12 RL steps"."""


class OpenRun(Generic[State]):
    """A run whose folder is held. `saved` is None for a new one."""

    def __init__(
        self, config: BaseModel, folder: RunFolder, display: LiveDisplay, saved: Saved[State] | None, stack: ExitStack
    ) -> None:
        """Open a run; what is opened later is closed with `stack`."""
        self.saved = saved
        self.table: Mapping[str, Any] = {}
        self._config, self._folder, self._display, self._stack = config, folder, display, stack
        self._memory = PeakMemory(period_s=MEMORY_PERIOD_S)

    def first_weights(self, model: ModelSection, seed: int) -> Path:
        """The model to start from; drawn into the run folder where `model.init` asks for it."""
        if model.init == "weights":
            return Path(model.path)
        drawn = self._folder.initial_model
        if not (drawn / "model.safetensors").exists():
            write_policy(model.path, drawn, seed)
        return drawn

    def begin_record(self, tracking: TrackingSection, name: str, last_step: int) -> TrackerSet:
        """Opens metrics.jsonl, of which a resumed run keeps the steps up to `last_step`, and W&B; measures memory."""
        self._stack.enter_context(self._memory)
        metrics = JsonlTracker(self._folder.metrics)
        if self.saved is not None:
            metrics.truncate_after(last_step)
        settings = self._config.model_dump(mode="json")
        wandb = start_wandb(tracking.wandb, self._folder.path, name, settings, project=tracking.wandb_project)
        trackers = TrackerSet([metrics], wandb)
        self._stack.callback(trackers.close)
        return trackers

    def open_tracker(self, path: Path, last_step: int) -> JsonlTracker:
        """Opens a further file of metrics, of which a resumed run keeps the steps up to `last_step`."""
        tracker = JsonlTracker(path)
        if self.saved is not None:
            tracker.truncate_after(last_step)
        self._stack.callback(tracker.close)
        return tracker

    def take_name(self) -> None:
        """From here on there is something to keep: a new run takes its name, and an earlier one makes room."""
        if self.saved is None and (moved := self._folder.keep()) is not None:
            self._display.note(f"an earlier run of this name is kept as {moved}")

    @contextmanager
    def summarised(
        self,
        summarise: Callable[[str, float], dict[str, Any]],
        build_table: Callable[[dict[str, Any], Path], Mapping[str, Any]],
        finished: Callable[[], str] = lambda: "finished",
    ) -> Iterator[None]:
        """Writes summary.json however what is inside ends: as `finished` says, "interrupted" or "failed".

        Args:
            summarise: Given the status and the peak of memory in GiB, makes the summary.
            build_table: Makes the rows that are shown at the end of it and the folder.
        """
        status = "failed"
        try:
            yield
            status = finished()
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            summary = summarise(status, self._memory.peak_gib)
            write_summary(summary | describe_process(), self._folder.summary)
        self.table = build_table(summary, self._folder.path)


@contextmanager
def open_run(
    config: BaseModel, folder: RunFolder, display: LiveDisplay, find_saved: Callable[[], Saved[State]] | None
) -> Iterator[OpenRun[State]]:
    """Holds the folder of a new run, or with `find_saved` of one that is resumed from what that finds.

    An earlier run's folder is moved in `take_name` alone. Once all is closed without an error the end table is shown.
    """
    with ExitStack() as stack:
        stack.enter_context(folder.held())
        saved = find_saved() if find_saved is not None else None
        if saved is None:
            folder.create(config)
        else:
            folder.reopen(config)
            display.note(f"resuming from {saved.checkpoint}: {saved.steps_done} done")
        opened = OpenRun(config, folder, display, saved, stack)
        yield opened
    display.close()
    display.summary(opened.table)
