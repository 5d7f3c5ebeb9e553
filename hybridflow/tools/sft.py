"""`hybridflow sft`: supervised training on demonstrations, the warm-up stage of the recipe as a run of its own.

<run.directory>/<run.name>/
    resolved.json    every setting            metrics.jsonl   one line per step        wandb/   the same, offline
    checkpoints/     step-000050/{megatron/, state.json, manifest.json}
    hf/              the trained model        summary.json    what came of it          logs/    of the workers
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hybridflow.observability.display import LiveDisplay
from hybridflow.observability.log import set_step
from hybridflow.observability.resources import PeakMemory
from hybridflow.observability.trackers import JsonlTracker, TrackerSet
from hybridflow.observability.wandb_tracker import start_wandb
from hybridflow.policy.init import write_policy
from hybridflow.run_folder.checkpoints import STATE_FILE, WEIGHTS_FOLDER, CheckpointFolder
from hybridflow.run_folder.folder import RunFolder
from hybridflow.run_folder.summary import describe_process, write_summary
from hybridflow.tools.session import open_policy
from hybridflow.tools.sft_config import SftConfig
from hybridflow.tools.sft_inputs import SftInputs, load_inputs
from hybridflow.tools.sft_state import SftState, build_summary, build_table, read_state, write_state
from hybridflow.trainer.group import PolicyGroup, PolicySettings
from hybridflow.trainer.layout import check_saved_weights
from hybridflow.types import UpdateReport
from megatron_ext.lr import learning_rate


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
        state: SftState,
        started: float,
    ) -> None:
        """`started` is the monotonic time at which this process began to work on the run."""
        self.state = state
        self._config = config
        self._inputs = inputs
        self._checkpoints = checkpoints
        self._group = group
        self._display = display
        self._trackers = trackers
        self._started = started
        self._wall_before = state.wall_s

    def train(self) -> None:
        """The steps that are left, from 1; the next batch is planned while the workers compute."""
        total, state = self._inputs.total_steps, self.state
        self._display.start("SFT", total, state.step)
        batch = self._inputs.batch(state.step + 1) if state.step < total else None
        while batch is not None:
            step = state.step + 1
            set_step(step)
            self._display.phase("TRAIN")
            started, rate = time.monotonic(), learning_rate(self._inputs.schedule, step)
            handle = self._group.start_sft_step(batch, rate, aggregation=self._config.train.loss)
            num_tokens = sum(sequence.num_tokens for sequence in batch.sequences)
            batch = self._inputs.batch(step + 1) if step < total else None
            report = self._group.finish_sft_step(handle)
            state.add_step(report)
            self._record(report, rate, num_tokens, time.monotonic() - started)
            self._checkpoint_if_due()

    def export(self, directory: Path) -> None:
        """Writes the trained model as a Hugging Face directory, once the last checkpoint is on the disk."""
        self._checkpoints.finish(self._group)
        self._display.phase("EXPORT")
        self._group.save_hf(directory)

    def measure_time(self) -> None:
        """Brings the run's seconds up to date."""
        self.state.wall_s = self._wall_before + time.monotonic() - self._started

    def _record(self, report: UpdateReport, rate: float, num_tokens: int, seconds: float) -> None:
        metrics = {
            "policy/loss": report.loss,
            "policy/grad_norm": report.grad_norm,
            "train/learning_rate": rate,
            "train/skipped": float(report.num_skipped),
            "train/tokens": float(num_tokens),
            "time/train_s": seconds,
            "perf/train_tokens_per_s": num_tokens / seconds,
        }
        self._trackers.log(self.state.step, metrics)
        self._display.step(self.state.step - 1, metrics)

    def _checkpoint_if_due(self) -> None:
        every, step = self._config.checkpoint.every_steps, self.state.step
        if step == self._inputs.total_steps or (every and step % every == 0):
            self._display.phase("CHECKPOINT")
            self.measure_time()
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
    latest, state = _latest(checkpoints, inputs) if resume else (None, SftState())
    settings = PolicySettings(
        config.train,
        config.model.dtype,
        config.run.seed,
        config.train.optimizer,
        force_float32=config.model.force_float32,
    )
    with ExitStack() as stack:
        stack.enter_context(folder.held())
        _open_folder(config, folder, latest, state, display)
        for note in inputs.demonstrations.describe():
            display.note(note)
        hf_dir = _first_weights(config, folder)
        memory = stack.enter_context(PeakMemory(period_s=2.0))
        trackers = stack.enter_context(_open_trackers(config, folder, state.step))
        display.note(f"starting Ray and {config.train.layout.world_size} Megatron worker(s) (usually 20 s)")
        group = stack.enter_context(open_policy(settings, hf_dir, folder.logs, config.cluster.environment))
        display.note("all workers are ready")
        if latest is not None:
            group.load_checkpoint(latest / WEIGHTS_FOLDER)
        elif (moved := folder.keep()) is not None:
            display.note(f"an earlier run of this name is kept as {moved}")
        run = SftRun(
            config=config,
            inputs=inputs,
            checkpoints=checkpoints,
            group=group,
            display=display,
            trackers=trackers,
            state=state,
            started=started,
        )
        status = "failed"
        try:
            run.train()
            run.export(folder.hf_export)
            status = "finished"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            run.measure_time()
            state.peak_rss_gib = max(state.peak_rss_gib, memory.peak_gib)
            summary = build_summary(state, inputs, status=status, seed=config.run.seed, hf=folder.hf_export)
            write_summary(summary | describe_process(), folder.summary)
    display.close()
    display.summary(build_table(summary, folder.path))


def _latest(checkpoints: CheckpointFolder, inputs: SftInputs) -> tuple[Path, SftState]:
    """The checkpoint to continue from, found whole and of this model, and what the run remembered then."""
    latest = checkpoints.latest()
    check_saved_weights(latest / WEIGHTS_FOLDER, inputs.hf_config)
    return latest, read_state(latest / STATE_FILE)


def _open_folder(
    config: SftConfig, folder: RunFolder, latest: Path | None, state: SftState, display: LiveDisplay
) -> None:
    if latest is not None:
        folder.reopen(config)
        display.note(f"resuming from {latest}: {state.step} steps done")
        return
    folder.create(config)


def _first_weights(config: SftConfig, folder: RunFolder) -> Path:
    """The model to start from; drawn into the run folder where the config asks for it."""
    if config.model.init == "weights":
        return Path(config.model.path)
    if not (folder.initial_model / "model.safetensors").exists():
        write_policy(config.model.path, folder.initial_model, config.run.seed)
    return folder.initial_model


@contextmanager
def _open_trackers(config: SftConfig, folder: RunFolder, steps_done: int) -> Iterator[TrackerSet]:
    metrics = JsonlTracker(folder.metrics)
    metrics.truncate_after(steps_done)
    tracking = config.tracking
    wandb = start_wandb(
        tracking.wandb, folder.path, config.run.name, config.model_dump(mode="json"), project=tracking.wandb_project
    )
    trackers = TrackerSet([metrics], wandb)
    try:
        yield trackers
    finally:
        trackers.close()
