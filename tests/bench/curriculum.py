"""Phases by length against long prompts alone, and retrospection; prints one JSON line.

    python tests/bench/curriculum.py
    python tests/bench/curriculum.py --seeds 0 1 2 --out runs/arms

The arms of configs/curriculum.toml. For each seed its warm-up makes one policy, and each arm trains on from it with
`hybridflow train`, for as many steps of as many prompts. All are evaluated on the same long documents, which nobody
trained on.

    retrospective   the configuration as it is: short prompts, then long ones with a share of short ones that were hard
    phases          the same without the share
    long            prompts of the last phase alone

Lists are by seed; other numbers are means over seeds. Each arm has

    accuracy           of greedy answers after the last step
    accuracy_error     standard error of its mean
    gain, gain_error   accuracy against `long`, and its standard error
    trained_ktokens    prompt and response tokens of the rows that updates took, in thousands
    read_ktokens       the same of all completions, also of groups that taught nothing
    trained_ratio, read_ratio   both against `long`
    ktokens_to_target  read_ktokens after which an evaluation first was at --target; null where a seed never was
    kl_mean, kl_std    of KL(old || new) over the steps that trained in the last phase, which is the whole run of
                       `long`; of a step: mean of its updates
    seconds            wall, with start and evaluations

A run in --out that is finished is not run again, and one that was stopped goes on. Seven minutes for a seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from tests.stack_cpu.command import read_lines  # noqa: E402

CONFIG = ROOT / "configs/curriculum.toml"
SHARE = "curriculum.phases.1.retrospective_share"


@dataclass(frozen=True)
class Outcome:
    """Results of one arm of one seed."""

    accuracy: float
    trained_tokens: int
    read_tokens: int
    tokens_to_target: int | None
    kl_mean: float
    kl_std: float
    seconds: float


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory() as kept:
        out = (options.out or Path(kept)).absolute()
        outcomes = run_all(options, out)
    print(json.dumps(summarise(options, outcomes)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="folder for the runs; without it they are removed at the end")
    parser.add_argument("--prompts", type=int, default=500, help="test documents")
    parser.add_argument("--target", type=float, default=0.9, help="accuracy of tokens_to_target")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all runs")
    options = parser.parse_args()
    if options.prompts < 2 or len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--prompts {options.prompts} is below 2, or --seeds {options.seeds} names one twice")
    return options


# ----------------------------------------------------------------------------------------------------------- the runs


def run_all(options: argparse.Namespace, out: Path) -> dict[str, list[Outcome]]:
    """Outcomes by arm, in the order of seeds."""
    arms = list_arms()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in arms}
    with tqdm(total=len(options.seeds) * (1 + len(arms)), unit="run", file=sys.stderr) as bar:
        for seed in options.seeds:
            folder = out / f"seed{seed}"
            shared = [
                f"run.seed={seed}",
                f"run.directory={json.dumps(str(folder))}",
                f"data.synth.num_test={options.prompts}",
                f"eval.num_prompts={options.prompts}",
                "tracking.wandb=disabled",
                *options.set,
            ]
            bar.set_description(f"seed {seed}, warm-up")
            train(folder / "start", [*shared, "train.num_steps=0", "curriculum.phases=[]", "eval.num_prompts=0"])
            bar.update()
            policy = json.dumps(str(folder / "start/hf"))
            for name, settings in arms.items():
                bar.set_description(f"seed {seed}, {name}")
                started = [f"model.path={policy}", "model.init=weights", "warmup.stages=[]"]
                train(folder / name, [*shared, *started, *settings])
                outcomes[name].append(read_outcome(folder / name, options.target))
                bar.update()
    return outcomes


def list_arms() -> dict[str, list[str]]:
    """Settings of each arm on top of the configuration."""
    long = tomllib.loads(CONFIG.read_text())["curriculum"]["phases"][-1]
    return {
        "long": [f"curriculum.phases=[{{ name = {json.dumps(long['name'])}, window = {long['window']} }}]"],
        "phases": [f"{SHARE}=0"],
        "retrospective": [],
    }


def train(folder: Path, settings: Sequence[str]) -> None:
    """Runs `hybridflow train`, or goes on with it; nothing where the run is finished."""
    summary = folder / "summary.json"
    if summary.exists() and json.loads(summary.read_text())["status"] == "finished":
        return
    own = [argument for setting in [f"run.name={folder.name}", *settings] for argument in ("--set", setting)]
    resumed = ["--resume"] if any(folder.glob("checkpoints/*/state.json")) else []
    command = [sys.executable, "-m", "hybridflow", "train", "--config", str(CONFIG), *own, *resumed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"{folder.name} ended with code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )


# ------------------------------------------------------------------------------------------------------- what they say


def read_outcome(folder: Path, target: float) -> Outcome:
    """Results of a finished run."""
    metrics = read_lines(folder / "metrics.jsonl")
    accuracy = {int(line["step"]): float(line["eval/accuracy"]) for line in metrics if "eval/accuracy" in line}
    last_phase = max(line.get("curriculum/phase", 0) for line in metrics)
    kl = [line["policy/kl"] for line in metrics if line.get("curriculum/phase") == last_phase and "policy/kl" in line]
    read, trained, num_groups = count_tokens(read_lines(folder / "completions.jsonl"))
    if num_groups != (told := sum(int(line.get("groups/trained", 0)) for line in metrics)):
        raise SystemExit(f"{folder}: the run trained on {told} groups, and rewards differ in {num_groups}")
    if len(kl) < 2:
        raise SystemExit(f"{folder}: {len(kl)} steps of the last phase trained: no spread of KL can be told")
    reached = min((step for step, value in accuracy.items() if value >= target), default=None)
    return Outcome(
        accuracy=accuracy[max(accuracy)],
        trained_tokens=sum(trained.values()),
        read_tokens=sum(read.values()),
        tokens_to_target=None if reached is None else sum(count for step, count in read.items() if step <= reached),
        kl_mean=statistics.mean(kl),
        kl_std=statistics.stdev(kl),
        seconds=json.loads((folder / "summary.json").read_text())["wall_s"],
    )


def count_tokens(completions: Sequence[dict[str, Any]]) -> tuple[dict[int, int], dict[int, int], int]:
    """Prompt and response tokens by step: of all completions, and of groups whose rewards differ; number of these."""
    read: dict[int, int] = {}
    groups: dict[tuple[int, str], tuple[set[float], int]] = {}
    for row in completions:
        step, tokens = int(row["step"]), int(row["prompt_tokens"]) + int(row["response_tokens"])
        read[step] = read.get(step, 0) + tokens
        rewards, before = groups.get((step, row["group_id"]), (set(), 0))
        groups[step, row["group_id"]] = rewards | {row["reward"]}, before + tokens
    trained = dict.fromkeys(read, 0)
    for (step, _), (rewards, tokens) in groups.items():
        trained[step] += tokens if len(rewards) > 1 else 0
    return read, trained, sum(len(rewards) > 1 for rewards, _ in groups.values())


def summarise(options: argparse.Namespace, outcomes: dict[str, list[Outcome]]) -> dict[str, Any]:
    """Means over seeds; standard errors are those of `--prompts` draws in each of them."""
    base = outcomes["long"]
    line: dict[str, Any] = {"seeds": options.seeds, "prompts": options.prompts, "target": options.target}
    for name, found in outcomes.items():
        reached = [one.tokens_to_target for one in found if one.tokens_to_target is not None]
        line[name] = {
            "accuracy": [one.accuracy for one in found],
            "accuracy_mean": round(mean(one.accuracy for one in found), 4),
            "accuracy_error": round(standard_error(options.prompts, found), 4),
            "gain": round(mean(one.accuracy for one in found) - mean(one.accuracy for one in base), 4),
            "gain_error": round(math.hypot(*(standard_error(options.prompts, group) for group in (found, base))), 4),
            "trained_ktokens": round(mean(one.trained_tokens for one in found) / 1000, 1),
            "read_ktokens": round(mean(one.read_tokens for one in found) / 1000, 1),
            "trained_ratio": ratio(found, base, "trained_tokens"),
            "read_ratio": ratio(found, base, "read_tokens"),
            "ktokens_to_target": round(mean(reached) / 1000, 1) if len(reached) == len(found) else None,
            "kl_mean": [float(f"{one.kl_mean:.3g}") for one in found],
            "kl_std": [float(f"{one.kl_std:.3g}") for one in found],
            "seconds": [round(one.seconds) for one in found],
        }
    return line


def mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def standard_error(num_prompts: int, found: Sequence[Outcome]) -> float:
    """Standard error of the mean accuracy of runs, each on `num_prompts` prompts of its own."""
    return math.sqrt(sum(one.accuracy * (1 - one.accuracy) / num_prompts for one in found)) / len(found)


def ratio(found: Sequence[Outcome], base: Sequence[Outcome], name: str) -> float:
    return round(sum(getattr(one, name) for one in found) / sum(getattr(one, name) for one in base), 3)


if __name__ == "__main__":
    main()
