"""Commands, options, exit codes, and the keys of configurations, files and benches stay as users and scripts know them.

outside.json says what they are. A change of it is deliberate: `python tests/architecture/outside.py --write` for what
is read from the code, by hand for the rest.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest
from typer.testing import CliRunner

from hybridflow import cli
from hybridflow.loop.train_loop import train
from hybridflow.recording.run_folder.summary_file import describe_process
from hybridflow.recording.state import RunState
from hybridflow.recording.summary import build_summary
from hybridflow.tools import sft_inputs
from hybridflow.tools import train_start as start
from hybridflow.tools.score_commands import EXIT_UNKNOWN
from hybridflow.types import Completion, Verdict
from tests.architecture import outside
from tests.unit.loop.fakes import FakeRollout, FakeSystem, build_config, half_right
from tests.unit.loop.test_over_sampling import OVER, SlowRollout

FROZEN = outside.read_frozen()
FILES = FROZEN["files"]
OF_REAL_STREAMS = {"perf/reward_pending_max"}
OF_EVALUATIONS = set(FILES["metrics.jsonl"]["evaluation"])
SMALL = {
    "attention_memory.py": ["--tokens", "64,128"],
    "judge.py": ["--verdicts", "20", "--slower", "0.1"],
    "logprob_memory.py": ["--tokens", "64", "--vocab", "512", "--hidden", "16"],
    "reshard.py": ["--layers", "1", "--shrink", "4", "--updates", "1", "--bucket-mib", "8"],
    "reshard_plan.py": ["--layouts", "tp=2:tp=1"],
    "reward_stream.py": ["--items", "160", "--payload-kib", "1", "--repeat", "1"],
    "train_step.py": [
        "--rows",
        "1",
        "--length",
        "32",
        "--layers",
        "1",
        "--hidden",
        "32",
        "--vocab",
        "64",
        "--steps",
        "1",
    ],
    "train_step.py --mode grpo": ["--layers", "1", "--hidden", "32", "--vocab", "64", "--steps", "1"],
}
"""Scripts that need neither Ray nor engines, and how to make them short."""


@pytest.mark.parametrize("what", outside.gather().items(), ids=lambda item: item[0])
def test_commands_options_and_configuration(what: tuple[str, Any]) -> None:
    name, now = what
    assert json.loads(json.dumps(now)) == FROZEN[name]


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "start_training", interrupted)
    missing = ["train", "--config", str(tmp_path / "none.toml")]
    wrong = subprocess.run([sys.executable, "-m", "hybridflow", *missing], capture_output=True, cwd=outside.ROOT)
    outside.list_commands()

    def run(*arguments: str) -> int:
        return CliRunner().invoke(cli.app, arguments).exit_code

    codes = [run("version"), wrong.returncode, run("train", "--resum"), EXIT_UNKNOWN, run(*missing)]
    assert [str(code) for code in codes] == list(FROZEN["exit_codes"])


# ------------------------------------------------------------------------------------------------------- files of a run


def with_parts(completion: Completion) -> Verdict:
    return msgspec.structs.replace(half_right(completion), parts={"close": 1.0})  # type: ignore[type-var]


SCENARIOS: dict[str, tuple[type[FakeRollout], Callable[[Completion], Verdict], dict[str, Any], set[str]]] = {
    "plain": (FakeRollout, half_right, {}, {"non_finite"}),
    "over-sampled": (SlowRollout, half_right, OVER, {"non_finite", *FILES["metrics.jsonl"]["over_sampling"]}),
    "phases": (
        FakeRollout,
        half_right,
        {"curriculum__phases": [{"name": "short", "steps": 2}, {"name": "long", "retrospective_share": 0.5}]},
        {"non_finite", *FILES["metrics.jsonl"]["phases"]},
    ),
    "KL and AEPO": (
        FakeRollout,
        half_right,
        {
            "algorithm__kl": {"place": "reward", "coefficient": 0.1, "reference": "start"},
            "algorithm__aepo": {"high": 0.5, "low": 0.3},
        },
        {"non_finite", *FILES["metrics.jsonl"]["kl"], *FILES["metrics.jsonl"]["aepo"]},
    ),
    "top-p, parts and overlong": (
        FakeRollout,
        with_parts,
        {"rollout__top_p": 0.9, "reward__overlong": {"buffer_tokens": 1, "penalty_factor": 1.0}},
        {
            "non_finite",
            "policy/entropy_within_top_p",
            "reward/parts/*",
            "reward/overlong_mean",
            "reward/overlong_fraction",
        },
    ),
}
"""Engines, verdicts, settings, and the keys that they add to a step's line."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_keys_of_the_files_of_a_run(tmp_path: Path, name: str) -> None:
    engines, judge, changes, added = SCENARIOS[name]
    system = FakeSystem(build_config(tmp_path, **changes), judge=judge, engines=engines)
    train(system.run)

    assert outside.differences(system.folder.path, optional=OF_REAL_STREAMS | {"policy/entropy"} | OF_EVALUATIONS) == {}
    steps = [line for line in system.metrics() if "groups/started" in line]
    plain = {*FILES["metrics.jsonl"]["step"], "groups/filtered/*"}
    plain -= {"policy/entropy"} if "policy/entropy_within_top_p" in added else set()
    assert set(outside.keys_of(steps)) | {"groups/filtered/*"} == plain - OF_REAL_STREAMS | added


def test_keys_of_the_summaries(tmp_path: Path) -> None:
    system = FakeSystem(build_config(tmp_path, train__num_steps=1))
    train(system.run)
    summary = build_summary(
        system.run.state,
        status="finished",
        wall_s=1.0,
        seed=0,
        sampling_guarantee="",
        weight_transport={"used": "exact", "reason": ""},
        data={
            **system.inputs.counts,
            **dict.fromkeys(("test_rows", "test_rows_dropped", "eval_prompts_in_train"), 0),
        },
    )
    assert outside.dotted(summary | describe_process()) == FILES["summary.json"]["line"]
    over = build_summary(
        RunState(), status="", wall_s=1.0, seed=0, sampling_guarantee="", weight_transport={}, num_carried=2
    )
    assert set(over["groups"]) == {"started", "trained", "filtered", "discarded", "carried", "short_steps"}


def test_keys_of_the_summary_of_supervised_training(tmp_path: Path) -> None:
    """Whatever its inputs are: they give values, and no key."""
    summary = sft_inputs.build_summary(sft_inputs.SftState(), MagicMock(), status="", seed=0, hf=tmp_path)
    assert outside.dotted(summary | describe_process()) == FILES["sft: summary.json"]["line"]


def test_counters_of_the_reward_stream_are_counted_somewhere() -> None:
    source = "\n".join(path.read_text() for path in (outside.ROOT / "hybridflow").rglob("*.py"))
    names = [
        key.removeprefix("reward/")
        for key in FILES["metrics.jsonl"]["sometimes"]
        if re.fullmatch(r"reward/[a-z_]+", key)
    ]
    assert [name for name in names if f'{name}"' not in source] == []


# -------------------------------------------------------------------------------------------------------------- benches


@pytest.mark.parametrize("name", FROZEN["bench_lines"])
def test_each_key_of_a_bench_is_written_in_it(name: str) -> None:
    script = outside.BENCHES / name.split()[0]
    written = outside.literal_keys(script) | set(FROZEN["bench_defaults"].get(name, {}))
    patterns = [re.escape(key).replace(r"\*", "[a-z_]+") for key in written if key != "*"]
    names = set(re.findall(r'"(\w+)"', script.read_text()))  # a comprehension over names makes keys, too
    assert [key for key in FROZEN["bench_lines"][name] if not key_is_made(key, patterns, names)] == []


def key_is_made(key: str, patterns: list[str], names: set[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns) or (
        key in ("rule", "judge", "both") and key in names
    )


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", SMALL)
def test_keys_of_the_line_of_a_bench(name: str) -> None:
    command = [sys.executable, *f"tests/bench/{name}".split(), *SMALL[name]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=outside.ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(json.loads(done.stdout.splitlines()[-1])) == sorted(FROZEN["bench_lines"][name])
