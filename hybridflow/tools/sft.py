"""`hybridflow sft`: supervised training on demonstrations, the warm-up stage of the recipe as a run of its own.

<run.directory>/<run.name>/
    resolved.json    every setting            metrics.jsonl   one line per step        wandb/   the same, offline
    checkpoints/     step-000050/{megatron/, state.json, manifest.json}
    hf/              the trained model        summary.json    what came of it          logs/    of the workers
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hybridflow.cluster.watchdog import Watchdog
from hybridflow.observability.log import set_step
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.run_folder.checkpoints import STATE_FILE, WEIGHTS_FOLDER, CheckpointFolder
from hybridflow.recording.run_folder.folder import RunFolder
from hybridflow.recording.trackers import TrackerSet
from hybridflow.runtime.open_policy import open_policy
from hybridflow.runtime.open_run import Saved, open_run
from hybridflow.runtime.supervised import SupervisedStep, train_supervised
from hybridflow.tools.sft_config import SftConfig
from hybridflow.tools.sft_inputs import (
    SftInputs,
    SftState,
    build_summary,
    build_table,
    load_inputs,
    read_state,
    write_state,
)
from hybridflow.trainer.group import PolicyGroup, PolicySettings
from hybridflow.trainer.layout import check_saved_weights


class SftRun:
    """A run in progress: its parts, its state, and what its loop is written in."""

    def __init__(
        self,
        *,
        config: SftConfig,
        inputs: SftInputs,
        checkpoints: CheckpointFolder,
        group: PolicyGroup,
        display: LiveDisplay,
        trackers: TrackerSet,
        watch: Callable[[str], AbstractContextManager[None]],
        state: SftState,
        started: float,
    ) -> None:
        """`started` is the monotonic time at which this process began to work on the run.

        Inside `watch(phase)` the watchdog's deadline for it holds.
        """
        self.state = state
        self._config = config
        self._inputs = inputs
        self._checkpoints = checkpoints
        self._group = group
        self._display = display
        self._trackers = trackers
        self._watch = watch
        self._started = started
        self._wall_before = state.wall_s

    def train(self) -> None:
        """The steps that are left, from 1."""
        stage = self._inputs.stage
        self._display.start("SFT", stage.num_steps, self.state.step)
        with self._watch("warmup"):
            train_supervised(stage, self._group, self._record, steps_done=self.state.step, begin=self._begin)

    def _begin(self, step: int) -> None:
        set_step(step)
        self._display.phase("TRAIN")

    def export(self, directory: Path) -> None:
        """Writes the trained model as a Hugging Face directory, once the last checkpoint is on the disk."""
        with self._watch("checkpoint"):
            self._checkpoints.finish(self._group)
        self._display.phase("EXPORT")
        with self._watch("export"):
            self._group.save_hf(directory)

    def measure_time(self) -> None:
        """Brings the run's seconds up to date."""
        self.state.wall_s = self._wall_before + time.monotonic() - self._started

    def _record(self, done: SupervisedStep) -> None:
        self.state.add_step(done.report)
        metrics = done.metrics() | {
            "train/learning_rate": done.learning_rate,
            "train/tokens": float(done.num_tokens),
            "time/train_s": done.seconds,
            "perf/train_tokens_per_s": done.num_tokens / done.seconds,
        }
        self._trackers.log(self.state.step, metrics)
        self._display.step(self.state.step - 1, metrics)
        self._checkpoint_if_due()

    def _checkpoint_if_due(self) -> None:
        every, step = self._config.checkpoint.every_steps, self.state.step
        if step == self._inputs.stage.num_steps or (every and step % every == 0):
            self._display.phase("CHECKPOINT")
            self.measure_time()
            with self._watch("checkpoint"):
                self._checkpoints.save(self._group, f"step-{step:06d}", lambda path: write_state(self.state, path))


def run_sft(config: SftConfig, folder: RunFolder, display: LiveDisplay, *, resume: bool) -> None:
    """Trains, exports and writes summary.json.

    As `hybridflow train` does: `resume` continues the run of the same name; else an earlier one is renamed once every
    worker is ready. From then on the summary is written however the run ends, with status "finished", "interrupted" or
    "failed". Raises what stopped the run.
    """
    started = time.monotonic()
    checkpoints = CheckpointFolder(folder.checkpoints, config.checkpoint.keep_last, config.checkpoint.in_background)
    display.note("reading model and demonstrations")
    inputs = load_inputs(config)
    settings = PolicySettings(
        config.train,
        config.model.dtype,
        config.run.seed,
        config.train.optimizer,
        force_float32=config.model.force_float32,
    )
    with open_run(config, folder, display, (lambda: _find_saved(checkpoints, inputs)) if resume else None) as opened:
        for note in inputs.demonstrations.describe():
            display.note(note)
        hf_dir = opened.first_weights(config.model, config.run.seed)
        state = opened.saved.state if opened.saved else SftState()
        trackers = opened.begin_record(config.tracking, config.run.name, state.step)
        display.note(f"starting Ray and {config.train.layout.world_size} Megatron worker(s) (usually 20 s)")
        watchdog = Watchdog(config.cluster.stall.limits(), display.note, folder.logs / "stacks.log")
        with open_policy(settings, hf_dir, folder.logs, config.cluster.environment, watchdog) as group:
            display.note("all workers are ready")
            if opened.saved:
                group.load_checkpoint(opened.saved.checkpoint / WEIGHTS_FOLDER)
            opened.take_name()
            run = SftRun(
                config=config,
                inputs=inputs,
                checkpoints=checkpoints,
                group=group,
                display=display,
                trackers=trackers,
                watch=watchdog.phase,
                state=state,
                started=started,
            )

            def summarise(status: str, peak_gib: float) -> dict[str, Any]:
                run.measure_time()
                state.peak_rss_gib = max(state.peak_rss_gib, peak_gib)
                return build_summary(state, inputs, status=status, seed=config.run.seed, hf=folder.hf_export)

            with opened.summarised(summarise, build_table), watchdog.raising():
                run.train()
                run.export(folder.hf_export)


def _find_saved(checkpoints: CheckpointFolder, inputs: SftInputs) -> Saved[SftState]:
    """The latest checkpoint, whole and of this model; raises what is wrong with it."""
    latest = checkpoints.latest()
    check_saved_weights(latest / WEIGHTS_FOLDER, inputs.hf_config)
    state = read_state(latest / STATE_FILE)
    return Saved(latest, state, f"{state.step} steps")
