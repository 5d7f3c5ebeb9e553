"""A run in progress: its parts, its state, and the verbs that the loop is written in."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from hybridflow.config.sections import Config
from hybridflow.control.checkpoints import Checkpoints
from hybridflow.control.collect import MissingVerdictsError, collect_step
from hybridflow.control.evaluate import build_unknown_groups, greedy
from hybridflow.control.gate import build_gate_batch, check_gate, check_later_gap, gate_requests, gate_sampling
from hybridflow.control.partial_rollouts import PartialRollouts, StepPlan, build_requests, plan_all
from hybridflow.control.prepare import Inputs
from hybridflow.control.run_folder import RunFolder
from hybridflow.control.unknowns import UnknownGuard
from hybridflow.errors import RewardError
from hybridflow.observability.display import LiveDisplay
from hybridflow.observability.log import set_step
from hybridflow.observability.trackers import JsonlTracker, TrackerSet
from hybridflow.protocols import RewardStream, Rollout, Trainer
from hybridflow.recording.accuracy import compute_accuracy, compute_bounds
from hybridflow.recording.judge_totals import JudgeTotals
from hybridflow.recording.metrics import add_to_state, build_metrics
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.state import RunState
from hybridflow.recording.timeline import Mark, Timeline, TimelineRecord, compute_overlap
from hybridflow.recording.update_metrics import build_update_line
from hybridflow.rollout.engine.arguments import releases_memory
from hybridflow.runtime.colocation import Colocation, offloads_while_decoding
from hybridflow.trainer.layout import read_model
from hybridflow.types import Collected, FilteredBatch, PartialGroup, SamplingParams, UpdateReport
from megatron_ext.optimizer.lr import LRSchedule, learning_rate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Run:
    """What the loop works with. Attributes are parts; methods are the loop's verbs."""

    def __init__(
        self,
        *,
        config: Config,
        folder: RunFolder,
        inputs: Inputs,
        trainer: Trainer,
        rollout: Rollout,
        stream: RewardStream,
        check_workers: Callable[[], None],
        watch: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext(),
        moved: Callable[[], None] = lambda: None,
        display: LiveDisplay,
        trackers: TrackerSet,
        warmup_tracker: JsonlTracker,
        update_tracker: JsonlTracker,
        state: RunState,
        carried: list[PartialGroup] | None = None,
        started: float,
        timeline: Timeline | None = None,
        has_cuda: bool = False,
        released: Mapping[str, int] | None = None,
    ) -> None:
        """`started` is the monotonic time at which this process began to work on the run; `has_cuda`
        whether its workers compute on GPUs.

        `released` is what engines gave back before the trainer came.
        Inside `watch(phase)` the watchdog's deadline for it holds; `moved` is a sign of life.
        """
        self.config = config
        self.folder = folder
        self.tokenizer: PreTrainedTokenizerBase = inputs.tokenizer
        self.trainer = trainer
        self.rollout = rollout
        self.display = display
        self.warmup_tracker = warmup_tracker
        self.state = state
        self.carried = carried or []
        """Groups that were begun in earlier steps and not trained on."""
        self.data_counts = inputs.counts
        self._inputs = inputs
        self._stream = stream
        self._check_workers = check_workers
        self._watch = watch
        self._moved = moved
        self._trackers = trackers
        self._update_tracker = update_tracker
        self._unknowns = UnknownGuard(config.reward.max_unknown_fraction)
        self.judge = JudgeTotals(state.judge)
        self._checkpoints = Checkpoints(
            folder.checkpoints, config.checkpoint.keep_last, config.checkpoint.in_background
        )
        self._timeline = timeline or Timeline()
        self._timelines = TimelineRecord(folder.timeline)
        self._completions = CompletionRecord(folder.completions, inputs.documents)
        self._eval_completions = CompletionRecord(folder.eval_completions, inputs.documents)
        self._sampling = SamplingParams(
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            max_new_tokens=config.rollout.max_new_tokens,
            stop=config.rollout.stop,
            returns_support=config.rollout.top_p < 1,
        )
        self._colocation = Colocation(
            trainer,
            rollout,
            releases=releases_memory(config.rollout, has_cuda),
            offloads=offloads_while_decoding(config, has_cuda),
            released=released,
        )
        self._step_seconds: dict[str, float] = {}
        self._started = started
        self._wall_before = state.wall_s

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows and times a phase; its seconds count for the run and for the step under way."""
        self.display.phase(name.upper())
        started = time.monotonic()
        try:
            with self._watch(name):
                yield
        finally:
            ended = time.monotonic()
            self._add_seconds(name, ended - started)
            self._timeline.add(name, started, ended)

    def begin_step(self) -> int:
        """Number of the step that begins now; what is timed from here on counts for it."""
        self._step_seconds = {}
        self._timeline.begin_step()
        set_step(self.state.rl_step + 1)
        return self.state.rl_step + 1

    def collect(self, step: int) -> Collected:
        """The groups of a step, decoded and scored."""
        rules = PartialRollouts.of(self.config.rollout, self.config.train.prompts_per_step)
        fresh = self._inputs.train.prompts_from(*rules.fresh_prompts(step - 1, len(self.carried)))
        plan = rules.plan(
            f"t{step:05d}", self.carried, fresh, self.state.policy_version, self.config.algorithm.num_completions
        )
        collected = self._collect(plan, self._sampling, self._completions, step)
        self.carried = collected.carried
        for name, seconds in self._timeline.add_collected().items():
            self._add_seconds(name, seconds)
        return collected

    def hand_to_trainer(self) -> None:
        """The trainer gets the device, where it is shared in time; engines serve nothing until `publish`."""
        if self._colocation.is_shared:
            with self.phase("hand_over"):
                self._colocation.to_trainer()

    def publish(self) -> None:
        """Gives the engines the present weights under the present version, and the device."""
        with self.phase("sync"):
            self._colocation.sync_weights(self.state.policy_version)

    def check_engines(self) -> None:
        """Raises ModelMismatchError unless trainer and engines give the tokens of a text the same log-probabilities."""
        started = time.monotonic()
        config, hf_config = self.config, read_model(self.config.model.path)
        with self.phase("gate"):
            requests = gate_requests([*self._inputs.train.prompts, *self._inputs.eval_prompts], config, hf_config)
            groups = collect_step(
                plan_all(requests),
                gate_sampling(config),
                rollout=self.rollout,
                stream=self._stream,
                verdict_timeout_s=config.reward.timeout_s,
                check_workers=self._check_workers,
            ).groups
            with self._colocation.trainer_present():
                logprobs = self.trainer.logprobs(build_gate_batch(groups, config))
            result = check_gate(groups, logprobs, config, hf_config)
        self.display.note(
            f"trainer and engines compute the same model: {result.gap:.1e} per token on {result.num_tokens} tokens "
            f"({time.monotonic() - started:.1f} s)"
        )

    def evaluate(self) -> float | None:
        """Greedy accuracy on the test prompts; None when evaluation is off."""
        prompts = self._inputs.eval_prompts
        if not prompts:
            return None
        step = self.state.rl_step
        with self.phase("eval"):
            requests = build_requests(f"e{step:05d}", prompts, 1)
            groups = self._collect(plan_all(requests), greedy(self._sampling), self._eval_completions, step).groups
        groups += build_unknown_groups(f"e{step:05d}", self._inputs.eval_unusable, self.state.policy_version)
        self._eval_completions.append(step, groups)
        accuracy, bounds = compute_accuracy(groups), compute_bounds(groups)
        self.display.note(
            f"greedy accuracy on {len(groups)} test prompts after {step} RL steps: {accuracy:.3f}{bounds.describe()}"
        )
        of_judge = {f"eval/{name}": number for name, number in self.judge.take_metrics().items()}
        of_unknown = {
            "eval/unknown": float(bounds.num_unknown),
            "eval/accuracy_low": bounds.low,
            "eval/accuracy_high": bounds.high,
        }
        self._trackers.log(step, {"eval/accuracy": accuracy} | of_unknown | of_judge)
        self.state.eval_bounds_latest = bounds
        return accuracy

    def evaluate_before(self) -> None:
        """What RL starts from; measured once, and never on weights that RL has changed."""
        if self.state.eval_before is None and self.state.rl_step == 0:
            self.state.eval_before = self.state.eval_latest = self.evaluate()
            self.state.eval_bounds_before = self.state.eval_bounds_latest

    def evaluate_if_due(self) -> None:
        """Each `eval.every_steps`, and after the last step."""
        every, step = self.config.eval.every_steps, self.state.rl_step
        if step == self.config.train.num_steps or (every and step % every == 0):
            self.state.eval_latest = self.evaluate()

    def record(
        self,
        step: int,
        collected: Collected,
        filtered: FilteredBatch,
        updates: Sequence[UpdateReport],
        learning_rate: float,
    ) -> None:
        """Adds the step to the totals, the files, the trackers and the display."""
        spans = self._timeline.finish_step()
        self._timelines.append(step, spans)
        self._step_seconds["step"] = spans["step"][1]
        add_to_state(self.state, collected, filtered, updates)
        metrics = build_metrics(
            self.state,
            collected,
            filtered,
            updates,
            self._step_seconds,
            learning_rate,
            rollout=self.config.rollout,
        )
        metrics |= self._stream.take_metrics() | self._colocation.take_metrics() | self.judge.take_metrics()
        if (overlap := compute_overlap(spans)) is not None:
            metrics["perf/score_overlap"] = overlap
        self._completions.append(step, collected.groups, filtered.overlong)
        for update in updates:
            self._update_tracker.log(step, build_update_line(update))
        self._trackers.log(step, metrics)
        self.display.step(step - 1, metrics)
        check_later_gap(metrics.get("policy/logprob_gap", math.nan), self.config, step)

    def learning_rate(self) -> float:
        """Of the next update, as train.lr_schedule says: steps that changed the weights are counted."""
        train = self.config.train
        schedule = LRSchedule(
            peak=train.learning_rate,
            kind=train.lr_schedule,
            warmup_steps=train.lr_warmup_steps,
            total_steps=max(train.lr_decay_steps or train.num_steps, train.lr_warmup_steps, 1),
            min_ratio=train.lr_min_ratio,
        )
        return learning_rate(schedule, self.state.policy_version + 1)

    def checkpoint_if_due(self) -> None:
        every, step = self.config.checkpoint.every_steps, self.state.rl_step
        if step == self.config.train.num_steps or (every and step % every == 0):
            self.checkpoint()

    def checkpoint(self) -> None:
        """Saves weights, optimizer and state in one piece."""
        with self.phase("checkpoint"), self._colocation.trainer_present():
            self.state.wall_s = self.wall_s
            self._checkpoints.save(self.trainer, self.state, self.carried)

    def export(self) -> None:
        """Writes the final policy as a Hugging Face directory, once the last checkpoint is on the disk."""
        self._checkpoints.finish(self.trainer)
        with self.phase("export"), self._colocation.trainer_present():
            self.trainer.save_hf(self.folder.hf_export)

    @property
    def wall_s(self) -> float:
        """Seconds of this run so far, earlier processes included."""
        return self._wall_before + time.monotonic() - self._started

    def _add_seconds(self, name: str, seconds: float) -> None:
        """Counts for the run and for the step under way."""
        self.state.add_seconds(name, seconds)
        self._step_seconds[name] = seconds

    def _mark(self, what: Mark) -> None:
        self._timeline.mark(what)
        self._moved()

    def _collect(self, plan: StepPlan, sampling: SamplingParams, record: CompletionRecord, step: int) -> Collected:
        """Into `record` go those of a step whose verdicts end the run: its error names them."""
        try:
            collected = collect_step(
                plan,
                sampling,
                rollout=self.rollout,
                stream=self._stream,
                verdict_timeout_s=self.config.reward.timeout_s,
                check_workers=self._check_workers,
                mark=self._mark,
            )
        except MissingVerdictsError as error:
            record.append(step, error.groups)
            raise
        self.judge.add(collected.groups)
        for news in self.judge.take_news():
            self.display.note(news)
        try:
            self._unknowns.add(collected.groups)
        except RewardError:
            record.append(step, collected.groups)
            raise
        return collected
