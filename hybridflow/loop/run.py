"""A training run: its parts, its state, and the verbs that the loop is written in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hybridflow.config.sections import Config
from hybridflow.loop.checkpoints import Checkpoints
from hybridflow.loop.evaluation import Evaluation
from hybridflow.loop.measuring import Measuring
from hybridflow.loop.phases import RunPhases
from hybridflow.loop.train_groups import TrainGroups
from hybridflow.protocols import PolicyTrainer
from hybridflow.recording.recorder import Recorder
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.state import RunState
from hybridflow.runtime.colocation import Colocation


@dataclass(kw_only=True)
class Run:
    """Parts and state of a run in progress; `build_run` puts them together."""

    config: Config
    """Configuration that the next step reads: that of the present phase."""
    phases: RunPhases
    state: RunState
    folder: TrainFolder
    trainer: PolicyTrainer
    colocation: Colocation
    """Who has the device, and with which weights engines decode."""
    groups: TrainGroups
    evaluation: Evaluation
    recorder: Recorder
    checkpoints: Checkpoints
    warm_up: Callable[[int], None]
    """Runs the supervised stage of this index."""
    measuring: Measuring
    """Asks the trainer for what KL and AEPO need before a batch is made."""
    check_engines: Callable[[Config, int], None]
    """Raises ModelMismatchError unless trainer and engines compute the same model; given a phase's configuration, and
    the step that it begins after."""
    check_metrics: Callable[[int, dict[str, float]], None]
    """Raises where the metrics of a step say that the run should not go on."""
    needs_other_workers: bool = False
    """The phase that was entered last is of another layout: it goes on from the checkpoint with workers of its own."""

    @property
    def is_over(self) -> bool:
        """Whether all steps are done, or the last phase has ended before them."""
        return self.state.rl_step >= self.config.train.num_steps or self.phases.is_over

    def begin_stage(self) -> None:
        """Tells of the present phase; where it filters its prompts by difficulty and has not measured them, does so."""
        self.recorder.begin_stage(self.phases.stage, self.phases.num_steps, self.state.rl_step)
        if prompts := self.phases.to_measure:
            with self.recorder.phase("difficulty"):
                measured = self.groups.measure(self.state.rl_step, prompts)
            self.recorder.note(self.phases.filter_prompts(measured))

    def advance(self) -> bool:
        """Enters the next phase where it is due; whether it is. What the old one has begun is given up, and counted."""
        before = self.phases.opening
        if self.is_over or not self.phases.advance():
            return False
        self.config = self.phases.config
        self.needs_other_workers = self.phases.opening != before
        self.state.give_up(self.groups.begin_phase(self.config))
        return True

    def begin_step(self) -> int:
        """Number of the step that begins now; what is timed from here on counts for it."""
        step = self.state.rl_step + 1
        self.recorder.begin_step(step)
        return step

    def hand_to_trainer(self) -> None:
        """Gives the trainer the device, where it is shared in time; engines serve nothing until `sync_weights`."""
        if self.colocation.is_shared and not self.colocation.is_with_trainer:
            with self.recorder.phase("hand_over"):
                self.colocation.to_trainer()

    def sync_weights(self) -> None:
        """Gives the engines the present weights under the present version, and the device."""
        with self.recorder.phase("sync"):
            self.colocation.sync_weights(self.state.policy_version)

    def hand_to_engines(self) -> None:
        """Gives the device back, where it is shared in time, with the weights as they were."""
        if self.colocation.is_with_trainer and self.colocation.is_shared:
            self.sync_weights()

    def keep_reference(self) -> None:
        """Sets what KL is measured from: the policy as RL begins, or a directory's, kept in the run folder."""
        if self.measuring.needs_reference:
            with self.recorder.phase("reference"), self.colocation.trainer_present():
                self.measuring.keep_reference(self.folder.reference, has_begun=self.state.rl_step > 0)

    def evaluate_before(self) -> None:
        """Measures what RL starts from: once, and never on weights that RL has changed."""
        if not self.state.evals_before and self.state.rl_step == 0:
            self._evaluate()
            self.state.evals_before = self.state.evals_latest

    def evaluate_if_due(self) -> None:
        """Evaluates each `eval.every_steps`, and after the last step; the promotion rule is told."""
        if self._is_due(self.config.eval.every_steps):
            self._evaluate()
            self.phases.observe_evaluation(self.state.evals_latest)

    def checkpoint_if_due(self) -> None:
        """Saves each `checkpoint.every_steps`, after the last step, and for workers of another layout."""
        if self._is_due(self.config.checkpoint.every_steps) or self.needs_other_workers:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Saves weights, optimizer and state in one piece."""
        with self.recorder.phase("checkpoint"), self.colocation.trainer_present():
            self.state.wall_s = self.recorder.wall_s
            self.state.source = self.groups.save_source()
            self.checkpoints.save(self.trainer, self.state, self.groups.kept)
            self.phases.save_difficulty(self.folder.difficulty)

    def export(self) -> None:
        """Writes the final policy as a Hugging Face directory, once the last checkpoint is on the disk."""
        self.checkpoints.finish(self.trainer)
        with self.recorder.phase("export"), self.colocation.trainer_present():
            self.trainer.save_hf(self.folder.hf_export)

    def _evaluate(self) -> None:
        self.state.evals_latest = {}
        if not self.evaluation.sets:
            return
        with self.recorder.phase("eval"):
            groups = self.evaluation.collect(self.state.rl_step, self.state.policy_version)
        self.state.evals_latest = self.recorder.record_evaluation(self.state.rl_step, groups)

    def _is_due(self, every_steps: int) -> bool:
        return self.is_over or bool(every_steps and self.state.rl_step % every_steps == 0)
