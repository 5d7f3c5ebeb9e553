"""Phases on the real stack: other workers between two of them, YaRN that begins with one, and a kill within one."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from safetensors.torch import load_file
from torch import Tensor

from hybridflow.data.rows import write_rows
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from hybridflow.policy.init import write_policy
from tests.faults.kinds import KINDS, find
from tests.stack_cpu.command import ROOT, read_lines, run_train, settings, started_train, wait_until, without_times

pytestmark = [pytest.mark.stack_cpu, pytest.mark.full, pytest.mark.timeout(600)]

SHORT = {"name": "short", "window": [0, 110], "steps": 1}
LONG = {"name": "long", "window": [110, 200]}
CHANGES: dict[str, Any] = {
    "data__synth__doc_tokens": 128,
    "data__synth__min_doc_tokens": 64,
    "data__max_prompt_tokens": 200,
    "train__num_steps": 3,
    "train__prompts_per_step": 4,
    "train__learning_rate": 1e-4,
    "eval__num_prompts": 0,
    "checkpoint__every_steps": 0,
    "tracking__wandb": "disabled",
}


def build_arguments(model: Path, directory: Path, *phases: dict[str, Any], **changes: Any) -> list[str]:
    arguments = ["--set", *settings(model, directory, **(CHANGES | changes))]
    arguments += ["--set", f"curriculum.phases={to_toml(phases)}"]
    return [*arguments, 'reward.functions=[{call="tests.faults.reward:even"}]']  # whoever can do little earns something


def run(model: Path, directory: Path, *phases: dict[str, Any], **changes: Any) -> Path:
    """The folder of a run that came to its end."""
    log = directory.with_suffix(".log")
    assert run_train(build_arguments(model, directory, *phases, **changes), log, 500) == 0, log.read_text()[-3000:]
    return directory / "quickstart"


def to_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value)


def load_weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def test_a_run_that_is_laid_out_anew_between_two_phases_equals_one_that_is_not(tmp_path: Path) -> None:
    """From TP2 to PP2: the same completions, and the same numbers and weights to 1e-5."""
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    plain = run(tmp_path / "hf", tmp_path / "plain", SHORT, LONG)
    anew = run(tmp_path / "hf", tmp_path / "anew", SHORT, LONG | {"layout": {"pp": 2}})
    assert json.loads((anew / "summary.json").read_text())["curriculum"]["phase"] == "long"
    said = [[line["text"] for line in read_lines(path / "completions.jsonl")] for path in (plain, anew)]
    assert said[0] == said[1] and len(said[0]) == 48
    before, after = (read_lines(path / "metrics.jsonl") for path in (plain, anew))
    assert [line["curriculum/phase"] for line in after] == [1, 2, 2]
    assert all(line["groups/trained"] > 0 for line in after)
    for one, other in zip(before, after, strict=True):
        for name in ("reward/mean", "policy/loss", "policy/entropy", "policy/grad_norm", "train/learning_rate"):
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-5), name
    weights, others = (load_weights(path / "hf") for path in (plain, anew))
    assert weights.keys() == others.keys()
    assert max(float((weights[name] - others[name]).abs().max()) for name in weights) < 1e-5


def test_yarn_of_a_phase_is_that_of_trainer_and_engines(tmp_path: Path) -> None:
    """Native window 128: the second phase reads prompts beyond it, and its gate compares a text as long."""
    write_policy(ROOT / "configs/models/tiny", tmp_path / "hf", seed=0)
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 128}))
    long = LONG | {"yarn_factor": 2.0, "context_tokens": 256}
    folder = run(tmp_path / "hf", tmp_path / "yarn", SHORT | {"context_tokens": 128}, long, rollout__context_tokens=256)
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["curriculum/phase"] for line in lines] == [1, 2, 2]
    assert all(line["groups/trained"] > 0 for line in lines)
    assert all(line["policy/logprob_gap"] < 1e-4 for line in lines)
    rope = json.loads((folder / "hf/config.json").read_text())["rope_parameters"]
    assert rope["rope_type"] == "yarn" and (rope["factor"], rope["original_max_position_embeddings"]) == (2.0, 128)


TASKS = ("synth_easy", "synth_other")
END, LOWEST, HIGHEST, SHARE = 105, 0.2, 0.6, 0.25
MIXED = [
    {"name": "short", "window": [0, END], "steps": 2},
    {
        "name": "long",
        "window": [END, 200],
        "steps": 3,
        "retrospective_share": SHARE,
        "difficulty_filter": [LOWEST, HIGHEST],
        "temperature": 1.2,
    },
]
MIXED_CHANGES: dict[str, Any] = {
    "train__layout__tp": 1,
    "train__num_steps": 5,
    "curriculum__task_balance": "equal",
    "curriculum__retrospection__mode": "weighted",
    "rollout__dynamic_sampling": True,
    "rollout__max_running_requests": 1,  # replacements come as verdicts do; one at a time, no bit follows from that
    "reward__num_workers": 1,
    "checkpoint__every_steps": 1,
}


def write_tasks(path: Path) -> list[str]:
    """Three rows of one task to one of the other; returns the task of each row."""
    rows = []
    for seed, (task, number) in enumerate(zip(TASKS, (36, 12), strict=True)):
        spec = SynthSpec(tier="easy", doc_tokens=128, min_doc_tokens=64, num_train=number, num_test=0)
        rows += [msgspec.structs.replace(row, data_source=task) for row in generate_rows(spec, "train", seed)]
    write_rows(path, rows)
    return [row.data_source for row in rows]


def kill_within_the_second_phase(arguments: list[str], log: Path, folder: Path) -> None:
    """SIGKILL of the driver, after its third step."""
    with started_train(arguments, log) as process:
        wait_until(lambda: (folder / "checkpoints/rl-000003/state.json").exists(), process)
        [driver] = find("driver", psutil.Process(process.pid))
        os.kill(driver.pid, signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    assert KINDS["driver"].named[0].format(pid=driver.pid) in log.read_text()


def test_a_run_that_is_killed_in_a_phase_goes_on_as_one_that_is_not(warm_model: Path, tmp_path: Path) -> None:
    """Retrospection, balance, filter by difficulty and dynamic sampling at a time: all records, to the bit."""
    task_of = write_tasks(tmp_path / "rows.jsonl")
    changes = MIXED_CHANGES | {"data__train_path": str(tmp_path / "rows.jsonl")}
    straight = run(warm_model, tmp_path / "straight", *MIXED, **changes)
    killed, log = tmp_path / "killed/quickstart", tmp_path / "killed.log"
    arguments = build_arguments(warm_model, killed.parent, *MIXED, **changes)
    kill_within_the_second_phase(arguments, log, killed)
    assert run_train(["--resume", *arguments], log) == 0, log.read_text()[-3000:]
    assert "prompts of phase 'long' measured" not in log.read_text(), "a resume does not measure again"
    for name in ("completions.jsonl", "metrics.jsonl", "updates.jsonl"):
        assert without_times(read_lines(killed / name)) == without_times(read_lines(straight / name)), name
    assert (killed / "difficulty.csv").read_bytes() == (straight / "difficulty.csv").read_bytes()
    assert (killed / "hf/model.safetensors").read_bytes() == (straight / "hf/model.safetensors").read_bytes()
    check_steps(straight, task_of)
    check_filter(straight, len(task_of))


def check_steps(folder: Path, task_of: list[str]) -> None:
    """Every step trains on four groups, of both tasks alike; in the second phase a quarter of what is begun came back.

    What does not count is replaced by a prompt of the phase's own, so a step ends with no more earlier prompts.
    """
    metrics, groups = read_lines(folder / "metrics.jsonl"), read_groups(folder)
    assert [line["curriculum/phase"] for line in metrics] == [1, 1, 2, 2, 2]
    assert [line["groups/trained"] for line in metrics] == [4] * 5
    assert sum(len(found) for found in groups) > 20, "no group without variance: nothing was replaced"
    measured = {group["prompt_id"] for found in groups[:2] for group in found}
    for step, (line, found) in enumerate(zip(metrics, groups, strict=True), start=1):
        earlier = [group["prompt_id"] for group in found if step > 2 and group["prompt_tokens"] <= END]
        assert len(earlier) == (4 * SHARE if step > 2 else 0) and measured.issuperset(earlier)
        assert line.get("curriculum/retrospective_share", 0) == len(earlier) / len(found)
        begun = Counter(task_of_group(group, task_of) for group in found[:4] if group["prompt_id"] not in earlier)
        assert sum(begun.values()) == 4 - len(earlier) and max(begun.values()) == 2, begun
        trained = [group for group in found if len(group["rewards"]) > 1]
        of_task = Counter(task_of_group(group, task_of) for group in trained if group["prompt_id"] not in earlier)
        assert len(trained) == 4 and max(of_task.values()) <= (2 if step <= 2 else 3), of_task


def task_of_group(group: dict[str, Any], task_of: list[str]) -> str:
    return task_of[int(group["prompt_id"].removeprefix("train-"))]


def read_groups(folder: Path) -> list[list[dict[str, Any]]]:
    """A completion of each group, with the rewards of all, in the order in which groups were begun; for each step."""
    steps: dict[int, dict[str, dict[str, Any]]] = {}
    for line in read_lines(folder / "completions.jsonl"):
        group = steps.setdefault(line["step"], {}).setdefault(line["group_id"], line | {"rewards": set()})
        group["rewards"].add(line["reward"])
    return [[found[key] for key in sorted(found)] for _, found in sorted(steps.items())]


def check_filter(folder: Path, num_rows: int) -> None:
    """The filter left out what was measured outside of its bounds, and no step has it."""
    with (folder / "difficulty.csv").open() as stream:
        table = {row["prompt_id"]: row for row in csv.DictReader(stream)}
    rows = {
        one["name"]: one["rows"] for one in json.loads((folder / "summary.json").read_text())["curriculum"]["phases"]
    }
    assert sum(rows.values()) == num_rows
    told = re.search(
        r"difficulty of (\d+) prompts of phase 'long' measured: (.*)", folder.parent.with_suffix(".log").read_text()
    )
    trained = {group["prompt_id"] for found in read_groups(folder) for group in found}
    means = {number: float(row["mean_reward"]) for number, row in table.items() if number not in trained}
    counted = {
        "easy": sum(mean > HIGHEST for mean in means.values()),
        "hard": sum(mean < LOWEST for mean in means.values()),
    }
    assert sum(counted.values()) > 0
    assert told is not None and int(told[1]) == rows["long"]
    assert told[2] == ", ".join(f"{number} are too {what}" for what, number in counted.items() if number)
    state = json.loads((folder / "checkpoints/rl-000005/state.json").read_text())["source"]["state"]
    assert len(state["kept"]) == rows["long"] - sum(counted.values())
    own = {group["prompt_id"] for found in read_groups(folder)[2:] for group in found if group["prompt_tokens"] > END}
    assert own.issubset(state["kept"])
