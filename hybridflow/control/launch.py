"""From a configuration to a finished run folder."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hybridflow.config.sections import Config
from hybridflow.control.checkpoints import Checkpoints
from hybridflow.control.prepare import Inputs, check_model, load_inputs, write_inputs
from hybridflow.control.record_check import check_records, warmup_steps_done
from hybridflow.control.run import Run
from hybridflow.control.run_folder import RunFolder
from hybridflow.control.sampling_guarantee import sampling_guarantee
from hybridflow.control.system import System
from hybridflow.control.train_loop import RL, train
from hybridflow.control.transport import Transport
from hybridflow.control.warmup import stage_name
from hybridflow.observability.display import LiveDisplay
from hybridflow.observability.resources import PeakMemory
from hybridflow.observability.trackers import JsonlTracker, TrackerSet
from hybridflow.observability.wandb_tracker import start_wandb
from hybridflow.recording.diagnosis import name_status
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.state import RunState, read_state
from hybridflow.recording.summary import build_summary
from hybridflow.recording.timeline import TimelineRecord
from hybridflow.rollout.arguments import check_names, check_support
from hybridflow.run_folder.checkpoints import STATE_FILE, WEIGHTS_FOLDER
from hybridflow.run_folder.summary import describe_process, write_summary
from hybridflow.trainer.layout import check_saved_weights, read_model


def run_training(config: Config, folder: RunFolder, display: LiveDisplay, *, resume: bool) -> None:
    """Runs `config` to its end and writes summary.json.

    `resume` continues the run of the same name from its latest checkpoint. An earlier run's folder is moved once every
    worker is ready. From then on the summary is written however the run ends, with status "finished", "finished,
    nothing learnt", "interrupted" or "failed". Raises what stopped the run.
    """
    started = time.monotonic()
    display.note("reading model and data")
    check_model(config)
    check_names(config.rollout.sglang)
    check_support(config.rollout.top_p)
    inputs = load_inputs(config, folder.data if resume else None)
    with ExitStack() as stack:
        stack.enter_context(folder.held())
        saved = _open_folder(config, folder, resume, display)
        for note in inputs.notes:
            display.note(note)
        hf_dir = write_inputs(config, inputs, folder)
        memory = stack.enter_context(PeakMemory(period_s=2.0))
        trackers = stack.enter_context(_Trackers(config, folder, saved))
        system = stack.enter_context(System(config, hf_dir, folder.logs, display.note, display.progress))
        if not resume:
            _keep(folder, display)
        stages = [stage_name(stage) for stage in config.warmup.stages]
        display.plan([*stages, RL], ends_with_eval=config.eval.num_prompts > 0)
        run = _build_run(config, folder, inputs, system, display, trackers, saved, started)
        status = "failed"
        try:
            with system.watchdog.raising():
                train(run)
            status = name_status(run.state)
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            run.state.peak_rss_gib = max(run.state.peak_rss_gib, memory.peak_gib)
            summary = _summarise(run, status, system.transport, system.has_cuda)
            write_summary(summary | describe_process(), folder.summary)
    display.close()
    display.summary(_table(summary, folder.path))


def _open_folder(config: Config, folder: RunFolder, resume: bool, display: LiveDisplay) -> RunState | None:
    """The state to continue from, or None for a new run."""
    if not resume:
        folder.create(config)
        return None
    latest = Checkpoints(folder.checkpoints, config.checkpoint.keep_last).latest()
    check_saved_weights(latest / WEIGHTS_FOLDER, read_model(config.model.path))
    state = read_state(latest / STATE_FILE)
    check_records(config, folder, state)
    folder.reopen(config)
    display.note(f"resuming from {latest}: {state.rl_step} RL steps done")
    CompletionRecord(folder.completions).truncate_after(state.rl_step)
    TimelineRecord(folder.timeline).truncate_after(state.rl_step)
    CompletionRecord(folder.eval_completions).truncate_after(state.last_recorded_step)
    return state


def _keep(folder: RunFolder, display: LiveDisplay) -> None:
    """From here on there is something to keep: the new run takes its name."""
    moved = folder.keep()
    if moved is not None:
        display.note(f"an earlier run of this name is kept as {moved}")


class _Trackers:
    """Opens the metric files and the W&B run, and closes them."""

    def __init__(self, config: Config, folder: RunFolder, saved: RunState | None) -> None:
        metrics, self.warmup = JsonlTracker(folder.metrics), JsonlTracker(folder.warmup_metrics)
        self.updates = JsonlTracker(folder.updates)
        if saved is not None:
            done = warmup_steps_done(config, saved)
            metrics.truncate_after(saved.last_recorded_step)
            self.updates.truncate_after(saved.rl_step)
            self.warmup.truncate_after(done - 1)
        tracking = config.tracking
        self.steps = TrackerSet(
            [metrics],
            start_wandb(
                tracking.wandb,
                folder.path,
                config.run.name,
                config.model_dump(mode="json"),
                project=tracking.wandb_project,
            ),
        )

    def __enter__(self) -> _Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.steps.close()
        self.warmup.close()
        self.updates.close()


def _build_run(
    config: Config,
    folder: RunFolder,
    inputs: Inputs,
    system: System,
    display: LiveDisplay,
    trackers: _Trackers,
    saved: RunState | None,
    started: float,
) -> Run:
    state, carried = RunState(), []
    if saved is not None:
        state, carried = Checkpoints(folder.checkpoints, config.checkpoint.keep_last).restore(system.trainer)
    return Run(
        config=config,
        folder=folder,
        inputs=inputs,
        trainer=system.trainer,
        rollout=system.rollout,
        stream=system.stream,
        check_workers=system.check_workers,
        watch=system.watchdog.phase,
        moved=system.watchdog.moved,
        timeline=system.timeline,
        display=display,
        trackers=trackers.steps,
        warmup_tracker=trackers.warmup,
        update_tracker=trackers.updates,
        state=state,
        carried=carried,
        started=started,
        has_cuda=system.has_cuda,
        released=system.released,
    )


def _summarise(run: Run, status: str, transport: Transport, has_cuda: bool) -> dict[str, Any]:
    return build_summary(
        run.state,
        status=status,
        wall_s=run.wall_s,
        seed=run.config.run.seed,
        data=run.data_counts,
        weight_transport={"used": transport.name, "reason": transport.reason},
        sampling_guarantee=sampling_guarantee(run.config.rollout, has_cuda),
        num_carried=len(run.carried) if run.config.rollout.over_sampling > 1 else None,
        judge=run.judge.summary(),
    )


def _num_unknown(summary: dict[str, Any]) -> int:
    bounds = summary["eval_bounds_after"]
    return bounds["unknown"] if bounds else 0


def _table(summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """The rows of the end table."""
    groups, seconds = summary["groups"], summary["phase_seconds"]
    diagnosis = {"diagnosis": "\n".join(summary["diagnosis"])} if summary["diagnosis"] else {}
    return {
        "status": summary["status"],
        **diagnosis,
        "greedy accuracy before RL": summary["eval_accuracy_before"],
        "greedy accuracy after RL": summary["eval_accuracy_after"],
        "mean reward, first 5 steps": summary["reward_mean_first5"],
        "mean reward, last 5 steps": summary["reward_mean_last5"],
        "RL steps": summary["num_steps"],
        "groups trained / started": f"{groups['trained']} / {groups['started']}",
        "unknown verdicts in training / last evaluation": f"{summary['num_unknown']} / {_num_unknown(summary)}",
        "groups filtered": ", ".join(f"{k} {v}" for k, v in groups["filtered"].items()) or "none",
        "trainer-engine logprob gap": summary["logprob_gap_mean_abs"],
        "seconds in rollout / train / sync": " / ".join(
            f"{seconds[name]:.1f}" for name in ("rollout", "train", "sync")
        ),
        "wall seconds": summary["wall_s"],
        "peak memory, GiB": summary["peak_rss_gib"],
        "run folder": str(path),
    }
