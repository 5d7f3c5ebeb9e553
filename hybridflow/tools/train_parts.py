"""Puts a run together from its running parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from hybridflow.config.sections import Config
from hybridflow.curriculum.build import Curriculum
from hybridflow.loop.checkpoints import Checkpoints
from hybridflow.loop.collect import Collector
from hybridflow.loop.evaluation import Evaluation
from hybridflow.loop.gate import check_engines, check_later_gap
from hybridflow.loop.kept_groups import GroupStore
from hybridflow.loop.measuring import Measuring
from hybridflow.loop.phases import RunPhases
from hybridflow.loop.run import Run
from hybridflow.loop.train_groups import TrainGroups, train_sampling
from hybridflow.loop.verdict_guard import VerdictGuard
from hybridflow.loop.warmup import run_stage
from hybridflow.preflight.inputs import Inputs
from hybridflow.protocols import RewardStream, Rollout, Trainer
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.judge_totals import JudgeTotals
from hybridflow.recording.recorder import Recorder
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.sinks import Display, Files, Metrics, Totals
from hybridflow.recording.state import RunState
from hybridflow.recording.timeline import Timeline, TimelineRecord
from hybridflow.recording.trackers import JsonlTracker, Tracker
from hybridflow.rollout.engine.arguments import releases_memory
from hybridflow.runtime.colocation import Colocation, offloads_while_decoding


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Running parts of a run."""

    trainer: Trainer
    rollout: Rollout
    stream: RewardStream
    check_workers: Callable[[], None] = lambda: None
    """Raises where a reward worker has ended for good."""
    watch: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext()
    """Inside `watch(phase)` the watchdog's deadline for the phase holds."""
    moved: Callable[[], None] = lambda: None
    """Told that the run gets on."""
    timeline: Timeline = field(default_factory=Timeline)
    has_cuda: bool = False
    """Workers compute on GPUs."""
    released: Mapping[str, int] = field(default_factory=dict)
    """Bytes that engines gave back before the trainer came, by what they are."""


@dataclass(frozen=True)
class Trackers:
    """Metric files of a run; what goes to the file of steps may go elsewhere, too."""

    steps: Tracker
    warmup: JsonlTracker
    updates: JsonlTracker


def build_run(
    parts: Parts,
    *,
    config: Config,
    folder: TrainFolder,
    inputs: Inputs,
    curriculum: Curriculum,
    phases: RunPhases,
    display: LiveDisplay,
    trackers: Trackers,
    state: RunState,
    kept: GroupStore | None = None,
    started: float,
) -> Run:
    """A run that goes on from `state`, the groups that were `kept` and the state that the source of `curriculum` is in.

    `started` is the monotonic time at which this process began to work on the run.
    """
    trainer = parts.trainer
    colocation = _build_colocation(config, parts)
    sinks = [Totals(state), _open_files(folder, inputs), Metrics(trackers.steps, trackers.updates), Display(display)]
    recorder = Recorder(
        sinks,
        rollout=config.rollout,
        judge=JudgeTotals(state.judge),
        lengths=state.lengths,
        timeline=parts.timeline,
        meters=[parts.stream.take_metrics, colocation.take_metrics, phases.take_metrics],
        watch=parts.watch,
        moved=parts.moved,
        started=started,
        wall_before=state.wall_s,
    )
    collector = Collector(
        parts.rollout,
        parts.stream,
        verdict_timeout_s=config.reward.timeout_s,
        check_workers=parts.check_workers,
        guard=VerdictGuard(config.reward.max_unknown_fraction),
        recorder=recorder,
    )
    return Run(
        config=phases.config,
        phases=phases,
        state=state,
        folder=folder,
        trainer=trainer,
        colocation=colocation,
        groups=TrainGroups(phases.config, curriculum, collector, kept),
        evaluation=Evaluation(inputs.eval_sets, collector, train_sampling(config)),
        recorder=recorder,
        checkpoints=Checkpoints(folder.checkpoints, config.checkpoint.keep_last, config.checkpoint.in_background),
        warm_up=lambda index: run_stage(index, config, inputs.tokenizer, trainer, display, trackers.warmup),
        measuring=Measuring(config.algorithm, trainer, recorder, state),
        check_engines=partial(
            check_engines,
            prompts=inputs.prompts,
            collector=collector,
            trainer=trainer,
            colocation=colocation,
            recorder=recorder,
        ),
        check_metrics=lambda step, metrics: check_later_gap(metrics.get("policy/logprob_gap", math.nan), config, step),
    )


def _open_files(folder: TrainFolder, inputs: Inputs) -> Files:
    return Files(
        CompletionRecord(folder.completions, inputs.documents),
        CompletionRecord(folder.eval_completions, inputs.documents),
        TimelineRecord(folder.timeline),
    )


def _build_colocation(config: Config, parts: Parts) -> Colocation:
    return Colocation(
        parts.trainer,
        parts.rollout,
        releases=releases_memory(config.rollout, parts.has_cuda),
        offloads=offloads_while_decoding(config, parts.has_cuda),
        released=parts.released,
    )
