"""Trainer, engines and reward stream of the training loop, without processes.

All three write what is asked of them into one list of events, so that a test sees the order across them.
"""

from __future__ import annotations

import io
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from hybridflow.algorithms.objective import build_objective
from hybridflow.algorithms.spec import policy_spec
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.curriculum.build import Curriculum, build_curriculum
from hybridflow.curriculum.source import restore_source
from hybridflow.data.dataset import PromptDataset
from hybridflow.loop.checkpoints import Checkpoints, restore
from hybridflow.loop.kept_groups import KeptGroups
from hybridflow.loop.phases import RunPhases
from hybridflow.policy.stretched import write_stretched
from hybridflow.preflight.inputs import load_inputs
from hybridflow.protocols import WeightSource
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.run_folder.checkpoints import STATE_FILE
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.state import RunState, read_state
from hybridflow.recording.trackers import JsonlTracker, TrackerSet
from hybridflow.tools.train_parts import Parts, Trackers, build_run
from hybridflow.types import (
    Completion,
    GroupRequest,
    MeasuredRow,
    Ragged,
    RolloutReport,
    SamplingParams,
    ScoredCompletion,
    TrainBatch,
    Unknown,
    UpdateMetric,
    UpdateReport,
    Verdict,
)
from hybridflow.weights.manifest import TensorEntry
from hybridflow.wire.messages import build_completion_id
from tests.builders import build_completion, build_scored, build_verdict

ROOT = Path(__file__).parents[3]

Judge = Callable[[Completion], Verdict | None]
"""None: the verdict never comes."""


def half_right(completion: Completion) -> Verdict:
    """Even members right, odd ones wrong: every group has variance."""
    return build_verdict(float(completion.index % 2 == 0))


def all_right(completion: Completion) -> Verdict:
    return build_verdict(1.0)


def nobody_knows(completion: Completion) -> Verdict:
    return build_verdict(None)


class FakeTrainer:
    """Its weights are the number of updates it has seen."""

    def __init__(self, events: list[str], algorithm: AlgorithmSection | None = None) -> None:
        self.events = events
        self.algorithm = algorithm or AlgorithmSection()
        self.weights = 0
        self.learning_rates: list[float] = []
        self.batches: list[TrainBatch] = []
        self.sft_learning_rates: list[float] = []
        self.num_skipped = 0
        self.logprob_gap = 0.25
        self.gate_gap = 0.0
        self.fail_save: Exception | None = None
        self.reference: int | None = None
        self.entropies = [0.25]
        """One per step, at every token; the last holds on."""

    def keep_reference(self, directory: Path | None, verified: bool = False) -> None:
        self.reference = self.weights if directory is None else int((directory / "weights").read_text())
        self.events.append(f"reference {self.reference}")

    def save_reference(self, directory: Path) -> None:
        (directory / "weights").write_text(str(self.reference))

    def measure(self, batch: TrainBatch, columns: Sequence[str]) -> list[MeasuredRow]:
        """A token of member i has log-probability -0.5, and by the reference 0.25 i less for each update since."""
        self.events.append(f"measure {' '.join(columns)}")
        values = {"old_logprobs": -0.5, "entropy": self.entropies[0]}
        self.entropies = self.entropies[1:] or self.entropies if "entropy" in columns else self.entropies
        rows: list[MeasuredRow] = []
        for row in batch.sequences:
            since = self.weights - (self.reference or 0)
            index = int(row.sequence_id.rpartition("c")[2])
            values["ref_logprobs"] = -0.5 - 0.25 * index * since
            rows.append({name: [values[name]] * len(row.response) for name in columns})
        return rows

    def start_sft_step(self, batch: TrainBatch, learning_rate: float, per_sequence: bool = False) -> TrainBatch:
        self.sft_learning_rates.append(learning_rate)
        return batch

    def finish_sft_step(self, handle: TrainBatch) -> UpdateReport:
        self.events.append("sft")
        number = len(handle.sequences)
        return UpdateReport(loss=1.0, grad_norm=1.0, num_tokens=number, num_response_tokens=number, num_skipped=0)

    def update(self, batch: TrainBatch, learning_rate: float) -> list[UpdateReport]:
        self.events.append("update")
        self.batches.append(batch)
        self.weights += 1
        self.learning_rates.append(learning_rate)
        rules = build_objective(policy_spec(self.algorithm), top_p=batch.top_p).metrics
        measured = {"policy/logprob_gap": self.logprob_gap, "policy/logprob_gap_max": self.logprob_gap}
        measured |= {"policy/logprob_kl": 0.0}
        metrics = {
            name: UpdateMetric(
                value=measured.get(name, math.nan),
                num_tokens=10,
                kind=rule.kind,
                with_max=rule.with_max,
                of_each_update=rule.of_each_update,
            )
            for name, rule in rules.items()
        }
        return [
            UpdateReport(
                loss=0.5,
                grad_norm=1.0,
                num_tokens=3,
                num_response_tokens=10,
                num_skipped=self.num_skipped,
                mini_batch=mini,
                metrics=metrics,
            )
            for mini in range(len(batch.plan))
        ]

    def logprobs(self, batch: TrainBatch) -> list[list[float]]:
        self.events.append("compare")
        return [[value + self.gate_gap for value in (-0.5, -0.25)] for _ in batch.sequences]

    def reset_optimizer(self) -> None:
        self.events.append("reset optimizer")

    def save_checkpoint(self, directory: Path, background: bool = False) -> None:
        self.events.append("save")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "weights").write_text(str(self.weights))
        if self.fail_save is not None:
            raise self.fail_save

    def finish_checkpoint(self) -> None:
        self.events.append("finish save")

    def load_checkpoint(self, directory: Path) -> None:
        self.weights = int((directory / "weights").read_text())

    def save_hf(self, directory: Path) -> None:
        self.events.append("export")

    def begin_weights(self, version: int) -> None:
        self.events.append(f"publish {version}")
        self._rounds = [f"weights after {self.weights} updates"]

    def next_weights(self) -> str | None:
        return self._rounds.pop() if self._rounds else None

    def end_weights(self) -> list[TensorEntry]:
        return [TensorEntry("w", (1,), "float32", self.weights)]


class FakeStream:
    """Gives every verdict of `judge`, in an order of its own."""

    def __init__(self, judge: Judge, shuffle_seed: int | None = None) -> None:
        self.judge = judge
        self._shuffle = None if shuffle_seed is None else random.Random(shuffle_seed)
        self._ready: list[ScoredCompletion] = []
        self._outstanding: set[str] = set()
        self._unscored: list[Completion] = []

    def expect(self, requests: Iterable[GroupRequest]) -> None:
        for request in requests:
            self._outstanding |= {build_completion_id(request.group_id, i) for i in range(request.num_completions)}

    def deliver(self, completions: list[Completion]) -> None:
        for completion in completions:
            verdict = self.judge(completion)
            if verdict is None:
                self._unscored.append(completion)
            else:
                self._ready.append(build_scored(completion, verdict))
        if self._shuffle is not None:
            self._shuffle.shuffle(self._ready)

    def next(self, timeout_s: float) -> ScoredCompletion | None:
        if not self._ready:
            return None
        item = self._ready.pop(0)
        self._outstanding.discard(item.completion.completion_id)
        return item

    def outstanding(self) -> set[str]:
        return set(self._outstanding)

    def give_up(self, why: str) -> list[ScoredCompletion]:
        given_up, self._unscored = self._unscored, []
        return [build_scored(one, Unknown(why=why), scored_by="") for one in given_up]

    def withdraw(self, completion_ids: Iterable[str]) -> None:
        self._outstanding -= set(completion_ids)

    def take_metrics(self) -> dict[str, float]:
        return {"time/held_back_s": 0.0}


class FakeRollout:
    """Decodes everything at once when started, with the version it was last given."""

    def __init__(self, events: list[str], stream: FakeStream) -> None:
        self.events = events
        self._stream = stream
        self.version: int | None = None
        self.loaded: list[str] = []
        self.samplings: list[SamplingParams] = []
        self.error: Exception | None = None
        self.finish_reason = "stop"
        self._report: RolloutReport | None = None

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        assert self.version is not None, "decoding before any weights were published"
        self.events.append(f"decode {requests[0].group_id.partition('-')[0]}")
        self.samplings.append(sampling)
        completions = [
            drawn(build_completion(request, index, self.version, finish_reason=self.finish_reason), sampling)
            for request in requests
            for index in range(request.num_completions)
        ]
        if self.error is None:
            self._stream.deliver(completions)
        self._report = RolloutReport(
            num_completions=len(completions), prompt_tokens=100, cached_tokens=60, response_tokens=2 * len(completions)
        )

    def extend(self, requests: list[GroupRequest]) -> None:
        raise AssertionError("all that was started is decoded: there is nothing to extend")

    def poll(self) -> RolloutReport | None:
        if self.error is not None:
            raise self.error
        return self._report

    def stop(self) -> None:
        raise AssertionError("a step that needs all of its groups is not stopped")

    def take_dropped(self) -> list[str]:
        return []

    def load_weights(self, source: WeightSource, version: int) -> None:
        source.begin_sync(version)
        while (round_ := source.next_round()) is not None:
            self.loaded.append(round_)
        source.end_sync({"engine-0": [TensorEntry("w", (1,), "float32", int(self.loaded[-1].split()[2]))]})
        self.version = version


def drawn(completion: Completion, sampling: SamplingParams) -> Completion:
    """The same, drawn as `sampling` says; where it asks for that, from its own tokens alone."""
    ids = completion.tokens.ids
    mask = Ragged.of([[token] for token in ids]) if sampling.returns_sampling_mask else Ragged()
    return msgspec.structs.replace(
        completion,
        tokens=msgspec.structs.replace(completion.tokens, sampling_mask=mask),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )


def build_config(directory: Path, **changes: Any) -> Config:
    """quickstart.toml made small: 4 prompts x 2 completions, no warm-up; `train__num_steps=5` sets train.num_steps."""
    values: dict[str, Any] = {
        "run.directory": str(directory),
        "model.path": str(ROOT / "configs/models/tiny"),
        "data.synth.doc_tokens": 64,
        "data.synth.num_train": 16,
        "data.synth.num_test": 4,
        "warmup.stages": [],
        "train.num_steps": 3,
        "train.prompts_per_step": 4,
        "algorithm.num_completions": 2,
        "reward.timeout_s": 0.05,
        "eval.num_prompts": 4,
        "checkpoint.every_steps": 0,
        "tracking.wandb": "disabled",
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    overrides = [f"{key}={to_toml(value)}" for key, value in values.items()]
    return load_config([ROOT / "configs/quickstart.toml"], overrides, Config)


def to_toml(value: Any) -> str:
    """A value as it stands behind `key =`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(to_toml(inner) for inner in value) + "]"
    return json.dumps(value)


class FakeSystem:
    """A run whose parts are fakes, in a real run folder."""

    def __init__(
        self,
        config: Config,
        *,
        judge: Judge = half_right,
        state: RunState | None = None,
        is_resumed: bool = False,
        engines: type[FakeRollout] = FakeRollout,
        curriculum: Callable[[PromptDataset], Curriculum] | None = None,
    ) -> None:
        """`is_resumed`: from the latest checkpoint in the folder; `state`: from this one, as it is."""
        self.events: list[str] = []
        self.folder = TrainFolder(config)
        if state is None and not is_resumed:
            self.folder.create(config)
            self.folder.keep()
        self.trainer = FakeTrainer(self.events, config.algorithm)
        self.stream = FakeStream(judge, shuffle_seed=0)
        self.rollout = engines(self.events, self.stream)
        self.inputs = inputs = load_inputs(config, None)
        chosen = curriculum(inputs.train) if curriculum else build_curriculum(config, inputs.trains)
        kept: KeptGroups | None = None
        if is_resumed:
            latest = Checkpoints(self.folder.checkpoints, 2).latest()
            state, kept = read_state(latest / STATE_FILE), restore(latest, self.trainer)
            restore_source(chosen.source, state.source, state.num_prompts_taken, latest, chosen.rows)

        def stretch(factor: float) -> Path:
            return write_stretched(Path(config.model.path), self.folder.stretched_model(factor), factor)

        self.run = build_run(
            Parts(trainer=self.trainer, rollout=self.rollout, stream=self.stream),
            config=config,
            folder=self.folder,
            inputs=inputs,
            curriculum=chosen,
            phases=RunPhases(config, chosen.phases, stretch),
            display=LiveDisplay("test", console=Console(file=io.StringIO())),
            trackers=Trackers(
                steps=TrackerSet([JsonlTracker(self.folder.metrics)]),
                warmup=JsonlTracker(self.folder.warmup_metrics),
                updates=JsonlTracker(self.folder.updates),
            ),
            state=state or RunState(),
            kept=kept,
            started=time.monotonic(),
        )

    def metrics(self) -> list[dict[str, Any]]:
        return read_lines(self.folder.metrics)

    def completions(self) -> list[dict[str, Any]]:
        return read_lines(self.folder.completions)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
