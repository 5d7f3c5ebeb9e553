"""The whole command on the real stack: a run, a killed worker, a resume, an interrupt, and its resume.

Chain of equalities: an uninterrupted run A of 4 steps; a run B of the same seed whose train worker is killed after its
second step and which is then resumed. B's records equal A's, so (1) two runs of one seed agree, (2) a resumed run
agrees with one that was never stopped, and (3) nothing was skipped or trained twice. Both ask a model judge, a server
on the loopback, about what the rules did not pass.

The run that is interrupted over-samples: what it had decoded of groups that it carries over is continued.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from hybridflow.loop.kept_groups import KeptGroups
from hybridflow.policy.init import write_policy
from tests.bench.judge_server import JudgeServer
from tests.stack_cpu.command import (
    ROOT,
    descendants,
    read_lines,
    run_train,
    settings,
    started_train,
    still_alive,
    wait_until,
    without_times,
)

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(400)]


AGREEING = "Oslo"
"""The judge says yes wherever question, answer or gold name it, and no elsewhere."""
PRICES = {"prompt": 2.0, "completion": 10.0}


@pytest.fixture(scope="module")
def judged() -> Iterator[dict[str, Any]]:
    """Settings of a run with a judge."""
    with JudgeServer(agreeing=AGREEING).serving() as server:
        prices = {f"reward__judge__price_per_million_{kind}_tokens": price for kind, price in PRICES.items()}
        yield {"reward__judge__endpoints": [server.url], **prices}


@pytest.fixture(scope="module")
def finished(warm_model: Path, judged: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of run A."""
    directory = tmp_path_factory.mktemp("a")
    log = directory / "output.txt"
    code = run_train(["--set", *settings(warm_model, directory, **judged)], log)
    assert code == 0, log.read_text()[-3000:]
    return directory / "quickstart"


def test_run_folder_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    files = {"resolved.json", "metrics.jsonl", "completions.jsonl", "summary.json"}
    assert names >= files | {"checkpoints", "data", "hf", "logs", "wandb"}
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == ["rl-000003", "rl-000004"]
    assert list((finished / "wandb").glob("offline-run-*/*.wandb"))


def test_summary_adds_up(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    groups = summary["groups"]
    assert summary["status"] == "finished"
    assert summary["num_steps"] == summary["policy_version_final"] == 4
    assert groups["started"] == 4 * 8 == groups["trained"] + sum(groups["filtered"].values())
    assert groups["trained"] > 0, "the test policy gave no group with variance: nothing was trained on"
    assert summary["logprob_gap_mean_abs"] < 1e-4
    assert summary["cached_tokens"] > 0, "no completion found its prompt in the cache of its group"
    assert summary["weight_transport"]["used"] == "exact"
    assert set(summary["phase_seconds"]) >= {"rollout", "train", "sync"}
    assert set(summary["versions"]) == {"torch", "megatron_core", "sglang", "ray", "pyzmq", "wandb", "transformers"}
    assert " train --config " in summary["command"]
    assert {"version", "commit", "host", "started"} <= summary.keys()


def test_what_a_run_leaves_is_for_its_user_alone(finished: Path) -> None:
    """Also what train workers, engines and Weights & Biases wrote."""
    left = [path for path in [finished, *finished.rglob("*")] if not path.is_symlink()]
    assert [str(path) for path in left if path.stat().st_mode & 0o077] == []


def test_a_normal_run_says_what_it_does_with_the_clock_and_warns_of_nothing(finished: Path) -> None:
    lines = (finished.parent / "output.txt").read_text().splitlines()
    told = lines[: next(number for number, line in enumerate(lines) if line.startswith("quickstart"))]
    assert [line for line in told if not re.match(r"\d\d:\d\d:\d\d (note: |RL|warm-up|still in )", line)] == []
    assert "loading the libraries (usually 10 s)" in "\n".join(told)
    assert 'kernels (train.kernels = "auto"): Adam: torch, RMSNorm: torch' in "\n".join(told[:4])
    assert json.loads((finished / "resolved.json").read_text())["train"]["kernels"] == "torch"
    assert "WARNING" not in "\n".join(lines)


def test_resuming_a_finished_run_says_so_and_starts_nothing(
    finished: Path, warm_model: Path, judged: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "output.txt"
    before = {path: path.lstat().st_mtime for path in finished.rglob("*")}
    assert run_train(["--resume", "--set", *settings(warm_model, finished.parent, **judged)], log) == 0
    assert f"the run {finished} is finished: 4 steps are done" in log.read_text()
    assert "loading the libraries" not in log.read_text()
    assert {path: path.lstat().st_mtime for path in finished.rglob("*")} == before


def test_every_completion_has_a_verdict_and_the_right_version(finished: Path) -> None:
    lines = read_lines(finished / "completions.jsonl")
    assert len(lines) == 4 * 8 * 4
    assert len({line["completion_id"] for line in lines}) == len(lines)
    assert all(line["verdict"]["status"] == "scored" and line["reward"] in (0.0, 1.0) for line in lines)
    assert all(line["policy_version"] == line["step"] - 1 for line in lines)


def test_the_judge_is_asked_where_the_rule_gave_less_and_can_only_add(finished: Path) -> None:
    votes: Counter[str | None] = Counter()
    for line in read_lines(finished / "completions.jsonl"):
        verdict = line["verdict"]
        is_asked = verdict["rule_reward"] < 1 and verdict["extracted"] != ""
        assert (verdict["judge_vote"] is not None) == is_asked, line
        votes[verdict["judge_vote"]] += 1
        if is_asked:
            agrees = AGREEING.lower() in f"{verdict['extracted']} {verdict['gold_form']}".lower()
            assert (verdict["judge_vote"], line["reward"]) == (("yes", 1.0) if agrees else ("no", 0.0))
    assert votes["yes"] and votes["no"]
    told = json.loads((finished / "summary.json").read_text())["judge"]
    lines = read_lines(finished / "metrics.jsonl")  # of steps and evaluations
    requests = sum(line.get("judge/requests", 0) + line.get("eval/judge/requests", 0) for line in lines)
    assert requests == told["requests"] > 0
    assert told["yes"] + told["no"] == told["verdicts"] and told["unknown"] == told["breaker_opened"] == 0
    assert set(told["endpoints"].values()) == {"closed"}
    cost = told["prompt_tokens"] * PRICES["prompt"] + told["completion_tokens"] * PRICES["completion"]
    assert told["cost"] == pytest.approx(cost / 1e6, abs=1e-6)


def test_killed_worker_is_named_and_resume_equals_an_uninterrupted_run(
    finished: Path, warm_model: Path, judged: dict[str, Any], tmp_path: Path
) -> None:
    log = tmp_path / "output.txt"
    run = tmp_path / "quickstart"
    arguments = ["--set", *settings(warm_model, tmp_path, **judged)]
    with started_train(arguments, log) as process:
        wait_until(lambda: (run / "checkpoints/rl-000002/state.json").exists(), process)
        children = descendants(process)
        victim = next(child for child in children if "TrainWorker" in " ".join(child.cmdline()))
        os.kill(victim.pid, signal.SIGKILL)
        assert process.wait(timeout=60) == 1
    output = log.read_text()
    assert "train worker" in output and str(victim.pid) in output and "--resume" in output, output[-2000:]
    assert "Traceback" not in output
    assert still_alive(children, within_s=5) == []
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"

    assert run_train(["--resume", *arguments], log) == 0, log.read_text()[-3000:]
    assert without_times(read_lines(run / "completions.jsonl")) == without_times(
        read_lines(finished / "completions.jsonl")
    )
    assert without_times(read_lines(run / "metrics.jsonl")) == without_times(read_lines(finished / "metrics.jsonl"))
    resumed, straight = (load_file(folder / "hf/model.safetensors") for folder in (run, finished))
    assert resumed.keys() == straight.keys()
    assert all(bool((resumed[name] == straight[name]).all()) for name in straight)


class Interrupted(NamedTuple):
    """A run that got Ctrl-C, and how it ended."""

    model: Path
    directory: Path
    code: int
    seconds: float
    left: list[str]
    """Processes that were still there after ten seconds."""
    output: str

    @property
    def run(self) -> Path:
        return self.directory / "quickstart"


OVER_SAMPLED = {
    "train__layout__tp": 1,
    "train__prompts_per_step": 4,
    "algorithm__num_completions": 2,
    "rollout__over_sampling": 1.5,
    "rollout__max_new_tokens": 100,
    "rollout__max_running_requests": 5,
    "eval__num_prompts": 0,
    "reward__num_workers": 1,
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """After two steps or more; the policy is drawn, so that most completions are as long as they may be."""
    directory = tmp_path_factory.mktemp("interrupted")
    model, log = directory / "hf", directory / "output.txt"
    write_policy(ROOT / "configs/models/tiny", model, seed=0)
    arguments = settings(model, directory, **OVER_SAMPLED, train__num_steps=500)
    with started_train(["--set", *arguments], log) as process:
        wait_until(lambda: (directory / "quickstart/checkpoints/rl-000002/state.json").exists(), process)
        children = descendants(process)
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(timeout=30)
    left = still_alive(children, within_s=max(0.1, 10 - (time.monotonic() - started)))
    return Interrupted(model, directory, code, time.monotonic() - started, left, log.read_text())


def test_interrupt_ends_everything_within_ten_seconds(interrupted: Interrupted) -> None:
    assert interrupted.left == []
    assert interrupted.seconds < 10
    assert interrupted.code == 130
    assert "Traceback" not in interrupted.output
    assert "interrupted; --resume continues from the last checkpoint, " in interrupted.output
    assert interrupted.output.rstrip().endswith(" --resume")


def test_a_run_that_over_samples_and_its_resume_train_on_each_prompt_once(interrupted: Interrupted) -> None:
    run, log = interrupted.run, interrupted.directory / "resumed.txt"
    last = max(int(path.name.removeprefix("rl-")) for path in (run / "checkpoints").iterdir() if path.is_dir())
    carried = KeptGroups.load(run / f"checkpoints/rl-{last:06d}").groups
    assert len(carried) == 2 and sum(group.num_tokens for group in carried) > 0
    steps = last + 1
    arguments = settings(interrupted.model, interrupted.directory, **OVER_SAMPLED, train__num_steps=steps)
    assert run_train(["--resume", "--set", *arguments], log) == 0, log.read_text()[-3000:]

    lines = read_lines(run / "completions.jsonl")
    assert len(lines) == len({line["completion_id"] for line in lines}) == steps * 4 * 2
    prompts = {line["group_id"]: line["prompt_id"] for line in lines}
    assert len(set(prompts.values())) == steps * 4
    assert all(0 <= line["step"] - 1 - line["versions"][0][0] <= 2 for line in lines if "versions" in line)
    summary = json.loads((run / "summary.json").read_text())
    groups = summary["groups"]
    assert (groups["started"], groups["carried"], groups["discarded"]) == (steps * 4 + 2, 2, 0)
    assert "order of arrival decides" in summary["sampling"]
    resumed_step = next(line for line in read_lines(run / "metrics.jsonl") if line["step"] == steps)
    assert resumed_step["groups/resumed"] == 2.0
