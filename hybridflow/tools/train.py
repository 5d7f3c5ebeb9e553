"""`hybridflow train`: from a configuration to a finished run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hybridflow.config.phases import smallest_top_p
from hybridflow.config.sections import Config
from hybridflow.curriculum.build import Curriculum, build_curriculum
from hybridflow.curriculum.source import PromptSource, restore_source
from hybridflow.loop.checkpoints import Checkpoints, restore
from hybridflow.loop.run import Run
from hybridflow.loop.train_loop import train
from hybridflow.loop.warmup import stage_name
from hybridflow.preflight.inputs import Inputs, check_model, load_inputs, write_inputs
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.record_check import check_records, warmup_steps_done
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.run_folder.checkpoints import STATE_FILE, WEIGHTS_FOLDER
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.state import RunState, read_state
from hybridflow.recording.summary import build_summary, name_status, sampling_guarantee
from hybridflow.recording.timeline import TimelineRecord
from hybridflow.rollout.engine.arguments import check_names, check_sampling_mask
from hybridflow.runtime.open_run import OpenRun, Saved, open_run
from hybridflow.runtime.system import System
from hybridflow.runtime.transport import Transport
from hybridflow.tools.train_parts import Parts, Trackers, build_run
from hybridflow.trainer.layout import check_saved_weights, read_model


def run_training(config: Config, folder: TrainFolder, display: LiveDisplay, *, resume: bool) -> None:
    """Runs `config` to its end and writes summary.json.

    `resume` continues the run of the same name from its latest checkpoint. An earlier run's folder is moved once every
    worker is ready. From then on the summary is written however the run ends, with status "finished", "finished,
    nothing learnt", "interrupted" or "failed". Raises what stopped the run.
    """
    started = time.monotonic()
    display.note("reading model and data")
    check_model(config)
    check_names(config.rollout.sglang)
    check_sampling_mask(smallest_top_p(config))
    inputs = load_inputs(config, folder.data if resume else None)
    curriculum = build_curriculum(config, inputs.trains)
    find_saved = (lambda: _find_saved(config, folder, curriculum.source)) if resume else None
    with open_run(config, folder, display, find_saved) as opened:
        if opened.saved:
            _forget_later_steps(folder, opened.saved.state)
        for note in inputs.notes:
            display.note(note)
        write_inputs(inputs, folder)
        hf_dir = opened.first_weights(config.model, config.run.seed)
        trackers = _open_trackers(opened, config, folder)
        with System(config, hf_dir, folder.logs, display) as system:
            opened.take_name()
            stages = [stage_name(stage) for stage in config.warmup.stages]
            run = _build_run(config, folder, inputs, curriculum, system, display, trackers, opened.saved, started)
            display.plan([*stages, run.phases.stage], ends_with_eval=config.eval.num_prompts > 0)

            def summarise(status: str, peak_gib: float) -> dict[str, Any]:
                run.state.peak_rss_gib = max(run.state.peak_rss_gib, peak_gib)
                return _summarise(run, inputs.counts, status, system.transport, system.has_cuda)

            with opened.summarised(summarise, _table, lambda: name_status(run.state)), system.watchdog.raising():
                train(run)


def _find_saved(config: Config, folder: TrainFolder, source: PromptSource) -> Saved[RunState]:
    """The latest checkpoint, of this model and with its records; raises what is wrong with it.

    `source` is set to the state that it had then.
    """
    latest = Checkpoints(folder.checkpoints, config.checkpoint.keep_last).latest()
    check_saved_weights(latest / WEIGHTS_FOLDER, read_model(config.model.path))
    state = read_state(latest / STATE_FILE)
    restore_source(source, state.source, state.num_prompts_taken, latest / STATE_FILE)
    check_records(config, folder, state)
    return Saved(latest, state, f"{state.rl_step} RL steps")


def _forget_later_steps(folder: TrainFolder, saved: RunState) -> None:
    """Cuts the records behind the checkpoint of a resumed run: later steps are done again."""
    CompletionRecord(folder.completions).truncate_after(saved.rl_step)
    TimelineRecord(folder.timeline).truncate_after(saved.rl_step)
    CompletionRecord(folder.eval_completions).truncate_after(saved.last_recorded_step)


def _open_trackers(opened: OpenRun[RunState], config: Config, folder: TrainFolder) -> Trackers:
    state = opened.saved.state if opened.saved else RunState()
    return Trackers(
        opened.begin_record(config.tracking, config.run.name, state.last_recorded_step),
        opened.open_tracker(folder.warmup_metrics, warmup_steps_done(config, state) - 1),
        opened.open_tracker(folder.updates, state.rl_step),
    )


def _build_run(
    config: Config,
    folder: TrainFolder,
    inputs: Inputs,
    curriculum: Curriculum,
    system: System,
    display: LiveDisplay,
    trackers: Trackers,
    saved: Saved[RunState] | None,
    started: float,
) -> Run:
    parts = Parts(
        trainer=system.trainer,
        rollout=system.rollout,
        stream=system.stream,
        check_workers=system.check_workers,
        watch=system.watchdog.phase,
        moved=system.watchdog.moved,
        timeline=system.timeline,
        has_cuda=system.has_cuda,
        released=system.released,
    )
    return build_run(
        parts,
        config=config,
        folder=folder,
        inputs=inputs,
        curriculum=curriculum,
        display=display,
        trackers=trackers,
        state=saved.state if saved else RunState(),
        partial_groups=restore(saved.checkpoint, system.trainer) if saved else (),
        started=started,
    )


def _summarise(run: Run, data: dict[str, int], status: str, transport: Transport, has_cuda: bool) -> dict[str, Any]:
    return build_summary(
        run.state,
        status=status,
        wall_s=run.recorder.wall_s,
        seed=run.config.run.seed,
        data=data,
        weight_transport={"used": transport.name, "reason": transport.reason},
        sampling_guarantee=sampling_guarantee(run.config.rollout, has_cuda),
        num_carried=len(run.groups.partial_groups) if run.config.rollout.over_sampling > 1 else None,
        judge=run.recorder.judge.summary(),
        curriculum=run.phases.summary(),
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
