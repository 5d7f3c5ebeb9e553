"""CPU time of whole GRPO steps on the real system, at fixed lengths; prints one JSON line.

    python tests/bench/grpo_step.py
    python tests/bench/grpo_step.py --model HF_DIR --prompt-tokens 2048 --groups 4 --group-size 8 --new-tokens 64

A run of `hybridflow train` after its start: Ray, one SGLang engine, one Megatron worker, reward workers, weight sync
and records. Prompts are drawn, and new in each step; every completion has --new-tokens tokens, since engines do not end
at an end token; rewards differ within every group, so that all are trained on. The first step warms up and is not
counted. The figures are means over the others.

    cpu_seconds_per_step  user and system time of all processes of the run, Ray's and SGLang's too, and of those that
                          ended meanwhile
    phase_cpu_seconds     the same by phase; "other" is what lies between phases: filters, advantages, micro-batches,
                          records. They add up to cpu_seconds_per_step
    tokens_per_cpu_s      prompt and new tokens, a prompt counted with each of its completions
    peak_rss_mib          most memory of all processes at a time, a page that several share counted once

What counts memory is no process of the run. `--set` changes the run's configuration, as in `hybridflow train`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
# The verifier below is imported in each scoring process: what a run needs is imported where it is used.
if TYPE_CHECKING:
    from hybridflow.config.sections import Config
    from hybridflow.runtime.system import System
    from hybridflow.types import GroupRequest, Prompt, SamplingParams

NUM_WARM_UP_STEPS = 1
ROOM_TOKENS = 1024
"""Room in the KV pool beyond what a step's groups need: SGLang keeps some back."""


def verify(text: str, ground_truth: str) -> float:
    """A reward that texts which differ do not share."""
    return zlib.crc32(text.encode()) / 2**32


def main() -> None:
    options = parse_arguments()
    from hybridflow.recording.resources import PeakMemory

    os.environ["PYTHONPATH"] = str(ROOT)
    reader, writer = multiprocessing.get_context("spawn").Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        run = multiprocessing.get_context("spawn").Process(target=run_steps, args=(options, folder, writer))
        run.start()
        writer.close()  # so that its end is seen here
        with PeakMemory(run.pid) as memory:
            try:
                steps: list[dict[str, float]] = reader.recv()
            except EOFError:
                run.join()
                raise SystemExit(f"the run ended early, with exit code {run.exitcode}") from None
        run.join()
    print(json.dumps(summarise(options, steps) | {"peak_rss_mib": round(1024 * memory.peak_gib, 1)}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tiny = str(ROOT / "configs/models/tiny")
    parser.add_argument("--model", default=tiny, help="HF folder; without weights they are drawn")
    parser.add_argument("--prompt-tokens", type=int, default=2048)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="steps that are counted")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    for name, least in {"prompt_tokens": 1, "groups": 1, "group_size": 2, "new_tokens": 1, "steps": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} is below {least}")
    return options


def summarise(options: argparse.Namespace, steps: list[dict[str, float]]) -> dict[str, Any]:
    """Means over steps, each of which says its CPU seconds by phase, and "wall"."""
    means = {name: sum(step.get(name, 0.0) for step in steps) / len(steps) for name in steps[0]}
    wall_s = means.pop("wall")
    cpu_s = sum(means.values())
    num_tokens = options.groups * options.group_size * (options.prompt_tokens + options.new_tokens)
    return {
        "cpu_seconds_per_step": round(cpu_s, 2),
        "phase_cpu_seconds": {name: round(seconds, 2) for name, seconds in means.items()},
        "wall_seconds_per_step": round(wall_s, 2),
        "tokens_per_cpu_s": round(num_tokens / cpu_s, 1),
    }


# ------------------------------------------------------------------------------------------- the run's own process


def run_steps(options: argparse.Namespace, folder: str, results: Connection) -> None:
    """Sends CPU and wall seconds of each counted step, in a process below which all others of the run are."""
    from hybridflow.guard.guardian import split_off

    split_off()  # as `hybridflow train`: whatever ends this process, nothing of the run is left
    from hybridflow.loop.train_loop import train_step
    from hybridflow.observability.reporter import Notes
    from hybridflow.recording.run_folder.train_folder import TrainFolder
    from hybridflow.runtime.system import System

    config = build_config(options, folder)
    train_folder = TrainFolder(config)
    train_folder.create(config)
    hf_dir = first_weights(config, train_folder.initial_model)
    clock = CpuClock(psutil.Process(os.getppid()))
    notes = Notes(lambda text: print(text, file=sys.stderr, flush=True))
    with System(config, hf_dir, train_folder.logs, notes) as system:
        train_folder.keep()
        steps = Steps(clock)
        run = build_run(options, config, train_folder, system, steps)
        run.sync_weights()
        steps.begin()
        for _ in range(NUM_WARM_UP_STEPS + options.steps):
            train_step(run)
    if short := [step for step, trained in enumerate(steps.trained, start=1) if trained != options.groups]:
        raise SystemExit(f"steps {short} did not train on all of {options.groups} groups: {steps.trained}")
    results.send(steps.seconds[NUM_WARM_UP_STEPS:])
    results.close()


def build_config(options: argparse.Namespace, folder: str) -> Config:
    from hybridflow.config.load import load_config
    from hybridflow.config.sections import Config

    total = options.prompt_tokens + options.new_tokens
    num_completions = options.groups * options.group_size
    has_weights = any(Path(options.model).glob("*.safetensors"))
    values = {
        "run.directory": folder,
        "model.path": str(Path(options.model).absolute()),
        "model.init": "weights" if has_weights else "seeded",
        "data.max_prompt_tokens": options.prompt_tokens,
        "train.num_steps": NUM_WARM_UP_STEPS + options.steps,
        "train.prompts_per_step": options.groups,
        "train.max_tokens_per_micro_batch": max(16_384, total),
        "algorithm.num_completions": options.group_size,
        "rollout.max_new_tokens": options.new_tokens,
        "rollout.context_tokens": total,
        "rollout.kv_cache_tokens": options.groups * options.prompt_tokens
        + num_completions * options.new_tokens
        + ROOM_TOKENS,
        "rollout.max_running_requests": num_completions,
        "rollout.num_threads": 1,
        "eval.num_prompts": 0,
        "tracking.wandb": "disabled",
    }
    verifiers = 'reward.rules.verifiers={"doc-qa" = "tests.bench.grpo_step:verify"}'
    own = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_config([], [*own, verifiers, *options.set], Config)


def first_weights(config: Config, drawn: Path) -> Path:
    from hybridflow.policy.init import write_policy

    if config.model.init == "weights":
        return Path(config.model.path)
    write_policy(config.model.path, drawn, config.run.seed)
    return drawn


def draw_prompts(options: argparse.Namespace) -> list[Prompt]:
    """Prompts of all steps, no two alike; their tokens are ordinary ones of any vocabulary."""
    from hybridflow.trainer.layout import read_model
    from hybridflow.types import Prompt

    draw = random.Random(0)
    vocabulary = range(5, min(300, read_model(options.model).vocab_size))
    return [
        Prompt(
            prompt_id=f"p{number:05d}",
            token_ids=draw.choices(vocabulary, k=options.prompt_tokens),
            data_source="bench",
            ability="doc-qa",
            ground_truth="",
        )
        for number in range(options.groups * (NUM_WARM_UP_STEPS + options.steps))
    ]


def build_run(options: argparse.Namespace, config: Config, folder: Any, system: System, steps: Steps) -> Any:
    """The run of `hybridflow train` on drawn prompts, its phases told to `steps`."""
    from rich.console import Console

    from hybridflow.curriculum.build import Curriculum
    from hybridflow.curriculum.source import ShuffledEpochs
    from hybridflow.curriculum.step_rule import EveryCompleteGroup
    from hybridflow.loop.phases import RunPhases
    from hybridflow.preflight.inputs import Inputs
    from hybridflow.recording.display.live import LiveDisplay
    from hybridflow.recording.state import RunState
    from hybridflow.recording.trackers import JsonlTracker, TrackerSet
    from hybridflow.tools.train_parts import Parts, Trackers
    from hybridflow.tools.train_parts import build_run as put_together

    prompts = draw_prompts(options)
    return put_together(
        Parts(
            trainer=system.trainer,
            rollout=FixedLength(system.rollout),  # type: ignore[arg-type]
            stream=system.stream,
            check_workers=system.check_workers,
            watch=steps.watching(system.watchdog.phase),
            moved=system.watchdog.moved,
            timeline=system.timeline,
            has_cuda=system.has_cuda,
            released=system.released,
        ),
        config=config,
        folder=folder,
        inputs=Inputs(tokenizer=None, trains={None: SimpleNamespace(prompts=prompts)}, eval_sets=[]),  # type: ignore[arg-type]
        curriculum=Curriculum(ShuffledEpochs(prompts, ("bench",)), EveryCompleteGroup()),
        phases=RunPhases(config, None, lambda factor: Path(config.model.path)),
        display=LiveDisplay("bench", console=Console(file=sys.stderr)),
        trackers=Trackers(
            steps=TrackerSet([JsonlTracker(folder.metrics), steps]),
            warmup=JsonlTracker(folder.warmup_metrics),
            updates=JsonlTracker(folder.updates),
        ),
        state=RunState(),
        started=time.monotonic(),
    )


class FixedLength:
    """The engines, which decode every completion to its longest."""

    def __init__(self, rollout: Any) -> None:
        self._rollout = rollout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rollout, name)

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        import msgspec

        self._rollout.start(requests, msgspec.structs.replace(sampling, ignores_end=True))


class CpuClock:
    """CPU seconds of a process and all below it, those that have ended included.

    A process that ends is counted by its parent once that has waited for it, and until then by the kernel.
    """

    def __init__(self, root: psutil.Process) -> None:
        self._root = root

    def read(self) -> float:
        total = 0.0
        for process in [self._root, *self._root.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


class Steps:
    """Seconds of steps by phase; a tracker of the run, which is told when a step has ended."""

    def __init__(self, clock: CpuClock) -> None:
        self.seconds: list[dict[str, float]] = []
        self.trained: list[int] = []
        self._clock = clock
        self._phases: dict[str, float] = {}

    def begin(self) -> None:
        self._phases = {}
        self._cpu, self._wall = self._clock.read(), time.monotonic()

    def watching(self, watch: Callable[[str], Any]) -> Callable[[str], Any]:
        @contextmanager
        def phase(name: str) -> Iterator[None]:
            before = self._clock.read()
            with watch(name):
                yield
            self._phases[name] = self._phases.get(name, 0.0) + self._clock.read() - before

        return phase

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        phases, cpu, wall = self._phases, self._cpu, self._wall
        self.begin()
        other = self._cpu - cpu - sum(phases.values())
        self.seconds.append(phases | {"other": other, "wall": self._wall - wall})
        self.trained.append(int(metrics["groups/trained"]))

    def close(self) -> None:
        """Nothing is open."""


if __name__ == "__main__":
    main()
