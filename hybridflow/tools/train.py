"""`hybridflow train`: from a configuration to a finished run folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from hybridflow.config.phases import smallest_top_p
from hybridflow.config.sections import Config
from hybridflow.curriculum.build import Curriculum, build_curriculum
from hybridflow.curriculum.source import restore_source
from hybridflow.loop.checkpoints import Checkpoints, restore
from hybridflow.loop.phases import RunPhases
from hybridflow.loop.reference import check_reference
from hybridflow.loop.run import Run
from hybridflow.loop.train_loop import train
from hybridflow.loop.warmup import stage_name
from hybridflow.policy.stretched import write_stretched
from hybridflow.preflight.inputs import Inputs, check_model, load_inputs, write_inputs
from hybridflow.preflight.phase_models import check_phase_models
from hybridflow.preflight.reference import check_reference_model
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

BETWEEN_PHASES = "between phases"
"""Status of a summary while the workers of one phase end and those of the next are opened."""


def run_training(config: Config, folder: TrainFolder, display: LiveDisplay, *, resume: bool) -> None:
    """Runs `config` to its end and writes summary.json.

    `resume` continues the run of the same name from its latest checkpoint. An earlier run's folder is moved once every
    worker is ready. From then on the summary is written however the run ends, with status "finished", "finished,
    nothing learnt", "interrupted" or "failed", or "between phases" while workers change. Raises what stopped the run.
    """
    started = time.monotonic()
    display.note("reading model and data")
    check_model(config)
    check_phase_models(config)
    if not resume:
        check_reference_model(config)
    check_names(config.rollout.sglang)
    check_sampling_mask(smallest_top_p(config))
    inputs = load_inputs(config, folder.data if resume else None)
    curriculum = build_curriculum(config, inputs.trains)
    find_saved = (lambda: _find_saved(config, folder, curriculum)) if resume else None
    with open_run(config, folder, display, find_saved) as opened:
        if opened.saved:
            _forget_later_steps(folder, opened.saved.state)
        for note in inputs.notes:
            display.note(note)
        write_inputs(inputs, folder)
        trackers = _open_trackers(opened, config, folder)
        job = _Job(config, folder, inputs, curriculum, opened, display, trackers)
        job.train(opened.saved, started)
        while job.needs_other_workers:
            again = time.monotonic()
            display.phase("WORKERS")
            job.train(_find_saved(config, folder, curriculum), again)


class _Job:
    """A run from the first opening of its workers to the last: phases of another layout have workers of their own."""

    def __init__(
        self,
        config: Config,
        folder: TrainFolder,
        inputs: Inputs,
        curriculum: Curriculum,
        opened: OpenRun[RunState],
        display: LiveDisplay,
        trackers: Trackers,
    ) -> None:
        self._config = config
        self._folder = folder
        self._inputs = inputs
        self._curriculum = curriculum
        self._opened = opened
        self._display = display
        self._trackers = trackers
        self._has_name = False
        self.needs_other_workers = False
        """The run goes on from its latest checkpoint, in the phase that this is of."""
        self._weights = opened.first_weights(config.model, config.run.seed)
        self._phases = RunPhases(config, curriculum.phases, self._stretch)

    def train(self, saved: Saved[RunState] | None, started: float) -> None:
        """Opens the workers of the present phase and trains until the run or they have done their part."""
        at = self._phases.config
        hf_dir = self._weights if at.model.path == self._config.model.path else Path(at.model.path)
        with System(at, hf_dir, self._folder.logs, self._display) as system:
            if not self._has_name:
                self._opened.take_name()
                self._has_name = True
            run = self._build_run(system, saved, started)
            stages = [stage_name(stage) for stage in self._config.warmup.stages]
            self._display.plan([*stages, run.phases.stage], ends_with_eval=self._config.eval.num_prompts > 0)

            def summarise(status: str, peak_gib: float) -> dict[str, Any]:
                run.state.peak_rss_gib = max(run.state.peak_rss_gib, peak_gib)
                return _summarise(run, self._inputs.counts, status, system.transport, system.has_cuda)

            def name_end() -> str:
                return BETWEEN_PHASES if run.needs_other_workers else name_status(run.state)

            with self._opened.summarised(summarise, _table, name_end), system.watchdog.raising():
                train(run)
        self.needs_other_workers = run.needs_other_workers

    def _stretch(self, factor: float) -> Path:
        """The model with YaRN of this factor, for trainer and engines alike; made once, in the run folder."""
        return write_stretched(self._weights, self._folder.stretched_model(factor), factor)

    def _build_run(self, system: System, saved: Saved[RunState] | None, started: float) -> Run:
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
            config=self._config,
            folder=self._folder,
            inputs=self._inputs,
            curriculum=self._curriculum,
            phases=self._phases,
            display=self._display,
            trackers=self._trackers,
            state=saved.state if saved else RunState(),
            kept=restore(saved.checkpoint, system.trainer) if saved else None,
            started=started,
        )


def _find_saved(config: Config, folder: TrainFolder, curriculum: Curriculum) -> Saved[RunState]:
    """The latest checkpoint, of this model and these rows and with its records; raises what is wrong with it.

    The source of `curriculum` is set to the state that it had then.
    """
    latest = Checkpoints(folder.checkpoints, config.checkpoint.keep_last).latest()
    check_saved_weights(latest / WEIGHTS_FOLDER, read_model(config.model.path))
    path = latest / STATE_FILE
    state = read_state(path)
    restore_source(curriculum.source, state.source, state.num_prompts_taken, path, curriculum.rows)
    check_records(config, folder, state)
    if config.algorithm.kl.is_on and state.rl_step > 0:
        check_reference(folder.reference)
    else:
        check_reference_model(config)
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


def _summarise(run: Run, data: dict[str, int], status: str, transport: Transport, has_cuda: bool) -> dict[str, Any]:
    return build_summary(
        run.state,
        status=status,
        wall_s=run.recorder.wall_s,
        seed=run.config.run.seed,
        data=data,
        weight_transport={"used": transport.name, "reason": transport.reason},
        sampling_guarantee=sampling_guarantee(
            run.config.rollout, has_cuda, balances_tasks=run.config.curriculum.task_balance != "off"
        ),
        num_carried=len(run.groups.kept.groups) if run.config.rollout.carries_groups else None,
        judge=run.recorder.judge.summary(),
        curriculum=run.phases.summary(),
    )


def _num_unknown(summary: dict[str, Any]) -> int:
    bounds = summary["eval_bounds_after"]
    return bounds["unknown"] if bounds else 0


def _phase_rows(curriculum: dict[str, Any] | None) -> dict[str, str]:
    """Steps of each phase; no row without phases."""
    if curriculum is None:
        return {}
    return {"steps of phases": ", ".join(f"{phase['name']} {phase['steps']}" for phase in curriculum["phases"])}


def _table(summary: dict[str, Any], path: Path) -> dict[str, Any]:
    """The rows of the end table."""
    groups, seconds = summary["groups"], summary["phase_seconds"]
    short = groups.get("short_steps")
    told = {"RL steps with too few groups that teach": f"{short} of {summary['num_steps']}"} if short else {}
    diagnosis = {"diagnosis": "\n".join(summary["diagnosis"])} if summary["diagnosis"] else {}
    return {
        "status": summary["status"],
        **diagnosis,
        "greedy accuracy before RL": summary["eval_accuracy_before"],
        "greedy accuracy after RL": summary["eval_accuracy_after"],
        "mean reward, first 5 steps": summary["reward_mean_first5"],
        "mean reward, last 5 steps": summary["reward_mean_last5"],
        "RL steps": summary["num_steps"],
        **_phase_rows(summary["curriculum"]),
        "groups trained / started": f"{groups['trained']} / {groups['started']}",
        "unknown verdicts in training / last evaluation": f"{summary['num_unknown']} / {_num_unknown(summary)}",
        **told,
        "groups filtered": ", ".join(f"{k} {v}" for k, v in groups["filtered"].items()) or "none",
        "trainer-engine logprob gap": summary["logprob_gap_mean_abs"],
        "seconds in rollout / train / sync": " / ".join(
            f"{seconds[name]:.1f}" for name in ("rollout", "train", "sync")
        ),
        "wall seconds": summary["wall_s"],
        "peak memory, GiB": summary["peak_rss_gib"],
        "run folder": str(path),
    }
