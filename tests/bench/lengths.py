"""Lengths of completions that a run trains on against those that it begins, on the real system; prints one JSON line.

    python tests/bench/lengths.py
    python tests/bench/lengths.py --over-sampling 3 --bound 2
    python tests/bench/lengths.py --drop

`hybridflow sft` teaches the tiny model to count down: a prompt names the word to begin at, one of eight whose distances
from the end spread 1:20; the model begins there or up to a third below, and says each word about six times. So the
prompt decides how long a completion is, and at temperature 1 no two are alike. `hybridflow train` then trains this
policy: Ray, one SGLang engine, one Megatron worker, reward workers. The reward is a number drawn from the text. It has
nothing to do with the length and differs within each group, so no filter leaves out any group, and what is measured is
the admission of groups alone.

    length_ratio         mean tokens of trained over begun completions, those that are under way at the end as far as
                         they are decoded: `rollout/length_ratio`, counted again from the records
    asked_ratio          mean distance that the prompts of trained groups ask for, over that of all begun ones: what is
                         under way, or was thrown away, counts at full length
    p5, p50, p95         tokens of the trained completions
    later_share          of trained groups: those that were begun in an earlier step
    later_ratio          their mean tokens over those of the groups that were trained on in the step that began them
    discarded            groups that were thrown away for their age
    oldest               most versions between a token and the step that trained on it
    steps_short          steps that trained on fewer groups than asked for

`--drop` makes the run lose what is not complete when a step ends, as trainers without partial rollouts do: what a run
looks like whose lengths are biased. `--policy` keeps the policy, and takes the one that is there. `--set` changes the
run's configuration, as in `hybridflow train`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
# The verifier below is imported in each scoring process: what a run needs is imported where it is used.
if TYPE_CHECKING:
    from hybridflow.types import PartialGroup

NUM_WORDS = 60
STARTS = [round(3 * 20 ** (level / 7)) for level in range(8)]
"""Distances from the end at which prompts ask to begin: 3 to 60."""
TOKENS_PER_WORD = 6
MOST_TOKENS = 640
SPACE = "\u0120"
"""A space, as tokens of a byte-level vocabulary spell it."""
SFT_STEPS, SFT_ROWS_PER_STEP = 120, 16
WITHOUT_STORE = """
import hybridflow.loop.train_groups as train_groups
from hybridflow.cli import guarded_main
from tests.bench.lengths import LosesAll
train_groups.KeptGroups = LosesAll
guarded_main()
"""


def verify(text: str, ground_truth: str) -> float:
    """A reward that texts which differ do not share."""
    return zlib.crc32(text.encode()) / 2**32


class LosesAll:
    """A store of groups that gives nothing back, and whose file holds all that it was ever given."""

    def __init__(self) -> None:
        self._lost: list[PartialGroup] = []
        self.groups: list[PartialGroup] = []

    def replace(self, groups: Iterable[PartialGroup]) -> None:
        self._lost += groups

    def save(self, folder: Path) -> None:
        from hybridflow.loop.kept_groups import KeptGroups

        KeptGroups(self._lost).save(folder)


def main() -> None:
    options = parse_arguments()
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "rows.jsonl"
        rows.write_text("".join(f"{json.dumps(row)}\n" for row in draw_rows(options.seed)))
        policy = options.policy or folder
        if not (policy / "policy/hf").exists():
            teach(policy, rows)
        train(options, policy / "policy/hf", rows, folder)
        print(json.dumps(measure(options, folder / "run")))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--over-sampling", type=float, default=1.5)
    parser.add_argument("--bound", type=int, default=20, help="rollout.max_staleness; the longest takes fewer steps")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--policy", type=Path, metavar="DIR")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    for name, least in {"steps": 1, "groups": 1, "group_size": 2}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} is below {least}")
    return options


# ------------------------------------------------------------------------------------------------------------- the task


def draw_rows(seed: int) -> list[dict[str, Any]]:
    """Prompts, each with a response to imitate."""
    words, draw = read_words(), random.Random(seed)
    rows: list[dict[str, Any]] = []
    for index in range(SFT_STEPS * SFT_ROWS_PER_STEP):
        start = draw.choice(STARTS)
        at, response = draw.randint(-(-2 * start // 3), start), ""
        while at > 0:
            response += words[at - 1]
            at -= draw.random() < 1 / TOKENS_PER_WORD
        rows.append(
            {
                "data_source": "bench",
                "prompt": [{"role": "user", "content": f"Count down from{words[start - 1]}"}],
                "ability": "doc-qa",
                "reward_model": {"style": "rule", "ground_truth": str(start)},
                "extra_info": {"index": index},
                "response": response,
            }
        )
    return rows


def read_words() -> list[str]:
    """Words of the tiny model that are one token each, wherever they stand."""
    from hybridflow.policy.load import load_tokenizer

    numbers = load_tokenizer(str(ROOT / "configs/models/tiny")).get_vocab()
    tokens = [token for token in sorted(numbers, key=lambda token: numbers[token]) if token.startswith(SPACE)]
    words = [token[1:] for token in tokens if len(token) > 4 and token[1:].isascii() and token[1:].isalpha()]
    return [f" {word}" for word in words[:NUM_WORDS]]


# ------------------------------------------------------------------------------------------------------------- the runs


def teach(folder: Path, rows: Path) -> None:
    values = {
        "run.directory": str(folder.absolute()),
        "run.name": "policy",
        "model.path": str(ROOT / "configs/models/tiny"),
        "model.init": "seeded",
        "data.path": str(rows),
        "train.num_steps": SFT_STEPS,
        "train.sequences_per_step": SFT_ROWS_PER_STEP,
        "train.learning_rate": 8e-3,
        "train.lr_schedule": "cosine",
        "train.lr_warmup_steps": 10,
        "train.loss": "token_mean",
        "checkpoint.every_steps": 0,
        "tracking.wandb": "disabled",
    }
    call(["-m", "hybridflow.cli", "sft", "--config", str(ROOT / "configs/sft.toml")], values, folder / "policy.txt")


def train(options: argparse.Namespace, policy: Path, rows: Path, folder: Path) -> None:
    values = {
        "run.directory": str(folder),
        "run.name": "run",
        "run.seed": options.seed,
        "model.path": str(policy.absolute()),
        "model.init": "weights",
        "warmup.stages": [],
        "data.train_path": str(rows),
        "data.max_prompt_tokens": 64,
        "train.num_steps": options.steps,
        "train.prompts_per_step": options.groups,
        "train.learning_rate": 1e-4,
        "train.layout.tp": 1,
        "algorithm.num_completions": options.group_size,
        "rollout.max_new_tokens": MOST_TOKENS,
        "rollout.over_sampling": options.over_sampling,
        "rollout.max_staleness": options.bound,
        "rollout.num_threads": 1,
        "eval.num_prompts": 0,
        "checkpoint.every_steps": options.steps,
        "tracking.wandb": "disabled",
    }
    verifiers = 'reward.rules.verifiers={"doc-qa" = "tests.bench.lengths:verify"}'
    program = ["-c", WITHOUT_STORE] if options.drop else ["-m", "hybridflow.cli"]
    config = ["train", "--config", str(ROOT / "configs/quickstart.toml")]
    call([*program, *config], values, folder / "run.txt", [verifiers, *options.set])


def call(command: list[str], values: dict[str, Any], log: Path, more: Iterable[str] = ()) -> None:
    """Runs a command of hybridflow to its end; ends this program with the last of its output where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    with log.open("w") as output:
        command = [sys.executable, *command, "--set", *settings, *more]
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ended with exit code {done.returncode}:\n{log.read_text()[-3000:]}")


# ---------------------------------------------------------------------------------------------------------- the figures


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The line of a run folder."""
    from hybridflow.loop.kept_groups import KeptGroups
    from tests.stack_cpu.command import read_lines

    completions, steps = read_lines(folder / "completions.jsonl"), read_lines(folder / "metrics.jsonl")
    left = KeptGroups.load(folder / f"checkpoints/rl-{options.steps:06d}").groups
    if filtered := sorted({key for step in steps for key in step if key.startswith("groups/filtered/") and step[key]}):
        raise SystemExit(f"groups were left out by {filtered}: lengths of the rest say nothing of admission alone")
    lengths = [line["response_tokens"] for line in completions]
    in_time = [line["response_tokens"] for line in completions if line["step"] == begun_in(line["group_id"])]
    num_left = sum(len(group.members) + len(group.partials) for group in left)
    begun_mean = (sum(lengths) + sum(group.num_tokens for group in left)) / (len(lengths) + num_left)
    asked = [int(line["gold"]) for line in completions]
    asked_left = [int(group.prompt.ground_truth) for group in left for _ in range(options.group_size)]
    later = (sum(lengths) - sum(in_time), len(lengths) - len(in_time))
    told = steps[-1].get("rollout/length_ratio")
    ratio = statistics.fmean(lengths) / begun_mean
    if told is not None and not options.drop and abs(told - ratio) > 1e-9:
        raise SystemExit(f"rollout/length_ratio is {told}, and {ratio} by the records")
    cuts = statistics.quantiles(lengths, n=20)
    return {
        "length_ratio": round(ratio, 4),
        "asked_ratio": round(statistics.fmean(asked) / statistics.fmean([*asked, *asked_left]), 4),
        "trained_length_mean": round(statistics.fmean(lengths), 1),
        "begun_length_mean": round(begun_mean, 1),
        "p5": cuts[0],
        "p50": cuts[9],
        "p95": cuts[-1],
        "later_share": round(later[1] / len(lengths), 3),
        "later_ratio": round(later[0] / later[1] / statistics.fmean(in_time), 2) if later[1] and in_time else None,
        "discarded": sum(int(step.get("groups/discarded", 0)) for step in steps),
        "oldest": max(age(line) for line in completions),
        "steps_short": sum(step["groups/trained"] < options.groups for step in steps),
        "groups": len(lengths) // options.group_size,
        "over_sampling": options.over_sampling,
        "bound": options.bound,
        "drop": options.drop,
        "seed": options.seed,
    }


def begun_in(group_id: str) -> int:
    """Step of the id: t00003-g0007 was begun in step 3."""
    return int(group_id[1:6])


def age(line: dict[str, Any]) -> int:
    """Versions between the first token of a completion and the step that trained on it; each step makes a version."""
    versions = line.get("versions", [[line["policy_version"], 0]])
    return line["step"] - 1 - versions[0][0]


if __name__ == "__main__":
    main()
