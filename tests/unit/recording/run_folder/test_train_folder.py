"""Run folders, the record of completions, and the summary."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.config.sections import Config
from hybridflow.data.row_reference import RowReference, hash_prompt
from hybridflow.data.schema import RewardModel, Row
from hybridflow.errors import CheckpointError, ConfigError, DataError
from hybridflow.loop.step import build_requests
from hybridflow.recording.accuracy import EvalResult
from hybridflow.recording.metrics import add_to_state, build_metrics
from hybridflow.recording.record_check import check_records
from hybridflow.recording.records import CompletionRecord
from hybridflow.recording.run_folder import summary_file as summary_module
from hybridflow.recording.run_folder.summary_file import write_summary
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.state import GroupCounts, RunState
from hybridflow.recording.summary import build_summary
from hybridflow.rewards.judge_verdict import combine
from hybridflow.types import (
    Collected,
    FilteredBatch,
    RolloutReport,
    Scored,
    StepCounts,
    UpdateMetric,
    UpdateReport,
)
from tests.builders import build_group, build_prompt
from tests.unit.loop.fakes import build_config, read_lines

PROMPT = build_prompt("p0", token_ids=[1, 2])
REQUESTS = build_requests("t00001", [PROMPT, PROMPT], 2)


def begin(folder: TrainFolder, config: Config) -> Path | None:
    folder.create(config)
    return folder.keep()


def test_an_earlier_run_is_renamed(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    folder = TrainFolder(config)
    assert begin(folder, config) is None
    folder.metrics.write_text("first")
    assert begin(folder, config) == tmp_path / "quickstart.1"
    folder.metrics.write_text("second")
    assert begin(folder, config) == tmp_path / "quickstart.2"
    assert [(tmp_path / f"quickstart.{n}/metrics.jsonl").read_text() for n in (1, 2)] == ["first", "second"]
    assert [path.name for path in folder.path.iterdir()] == ["resolved.json"]


def test_kernels_that_were_left_to_the_workers_may_be_named_on_resume(tmp_path: Path) -> None:
    """A choice that a run named, or its driver resolved, stays."""
    config = build_config(tmp_path)
    folder = TrainFolder(config)
    begin(folder, config)
    named = config.model_copy(update={"train": config.train.model_copy(update={"kernels": "torch"})})
    folder.check_same_run(named)
    folder.reopen(named)
    with pytest.raises(ConfigError, match=r"train.kernels: was 'torch', is 'auto'"):
        folder.check_same_run(config)


def test_a_folder_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = build_config(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"run.directory = .*cannot make the run folder"):
        TrainFolder(config).create(config)


def test_resume_refuses_other_settings(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__learning_rate=1e-3)
    folder = TrainFolder(config)
    begin(folder, config)
    other = build_config(tmp_path, train__learning_rate=2e-3)
    with pytest.raises(ConfigError, match=r"train.learning_rate: was 0.001, is 0.002") as caught:
        folder.reopen(other)
    assert "train.num_steps" not in str(caught.value)
    assert json.loads(folder.resolved.read_text())["train"]["learning_rate"] == 1e-3


def test_resume_may_run_longer(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=3)
    folder = TrainFolder(config)
    begin(folder, config)
    folder.reopen(build_config(tmp_path, train__num_steps=9, eval__every_steps=2, checkpoint__keep_last=5))
    assert json.loads(folder.resolved.read_text())["train"]["num_steps"] == 9


def test_a_longer_run_under_a_decay_is_refused_where_the_rate_would_jump(tmp_path: Path) -> None:
    config = build_config(tmp_path, train__num_steps=3, train__lr_schedule="linear")
    folder = TrainFolder(config)
    folder.create(config)
    with pytest.raises(ConfigError, match=r"train.lr_decay_steps: was 3, is 9"):
        folder.reopen(build_config(tmp_path, train__num_steps=9, train__lr_schedule="linear"))
    folder.reopen(build_config(tmp_path, train__num_steps=9, train__lr_schedule="linear", train__lr_decay_steps=3))
    assert json.loads(folder.resolved.read_text())["train"]["num_steps"] == 9


def test_resume_of_nothing(tmp_path: Path) -> None:
    config = build_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"nothing to resume.*without --resume"):
        TrainFolder(config).reopen(config)


# ---------------------------------------------------------------------------------------------------------- records


def write_steps(path: Path, *steps: int) -> CompletionRecord:
    record = CompletionRecord(path)
    for step in steps:
        record.append(step, [build_group(REQUESTS[0], [1.0, None], version=step - 1)])
    return record


def test_a_record_says_what_was_decoded_and_why_it_got_its_reward(tmp_path: Path) -> None:
    write_steps(tmp_path / "c.jsonl", 1)
    first, second = read_lines(tmp_path / "c.jsonl")
    assert first.pop("time") > 0
    assert first == {
        "step": 1,
        "prompt_id": "p0",
        "question": None,
        "gold": "yen",
        "document": None,
        "group_id": "t00001-g0000",
        "completion_id": "t00001-g0000-c00",
        "policy_version": 0,
        "text": "The answer is yen.",
        "verdict": {
            "status": "scored",
            "rule": "fake",
            "rule_reward": 1.0,
            "judge": None,
            "judge_vote": None,
            "extracted": "",
            "predicted_form": "",
            "gold_form": "",
            "why": "by the test",
        },
        "reward": 1.0,
        "overlong": 0.0,
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "response_tokens": 2,
    }
    assert (second["reward"], second["verdict"]["status"]) == (None, "unknown")


def test_a_record_keeps_rule_judge_and_overlong_penalty_apart(tmp_path: Path) -> None:
    judged = combine(Scored(value=0.25, rule="fake", extracted="yen", why="near"), "yes", "gpt", "the same")
    group = build_group(REQUESTS[0], [judged, 0.25])
    CompletionRecord(tmp_path / "c.jsonl").append(1, [group], {group.group_id: [-0.5, 0.0]})
    first, second = read_lines(tmp_path / "c.jsonl")
    kept = [
        (line["reward"], line["overlong"], *(line["verdict"][key] for key in ("rule_reward", "judge", "judge_vote")))
        for line in (first, second)
    ]
    assert kept == [(1.0, -0.5, 0.25, "gpt", "yes"), (0.25, 0.0, 0.25, None, None)]


def test_a_record_refers_to_the_document(tmp_path: Path) -> None:
    row = Row(
        data_source="m",
        prompt=[{"role": "user", "content": "<text>\nLong.\n</text>\n\nWhich?"}],
        ability="doc-qa",
        reward_model=RewardModel(style="rule", ground_truth="a", alternatives=["b"]),
        extra_info={},
    )
    reference = RowReference("rows.parquet", 7, hash_prompt(row))
    prompt = build_prompt(data_source="m", ground_truth="a", alternatives=["b"], question="Which?")
    group = msgspec.structs.replace(build_group(REQUESTS[0], [1.0]), prompt=prompt)
    CompletionRecord(tmp_path / "c.jsonl", {"p": reference}).append(1, [group])
    (line,) = read_lines(tmp_path / "c.jsonl")
    assert (line["question"], line["gold"]) == ("Which?", ["a", "b"])
    digest = hashlib.sha256(row.prompt[0]["content"].encode()).hexdigest()
    assert line["document"] == {"file": "rows.parquet", "row": 7, "sha256": digest}
    assert "Long." not in (tmp_path / "c.jsonl").read_text()


@pytest.mark.parametrize(
    ("steps", "is_whole"), [([1, 1, 2, 3], True), ([1, 3], False), ([1, 2], False), ([2, 1, 3], False), ([], True)]
)
def test_records_of_a_run_to_be_resumed_have_every_step(tmp_path: Path, steps: list[int], is_whole: bool) -> None:
    """Completions, timeline and metrics, before anything is cut: the checkpoint is of step 3."""
    config = build_config(tmp_path, warmup__stages=[])
    for name, kind in (("timeline", "the timeline of a step"), ("metrics", "metrics of a step")):
        folder = TrainFolder(build_config(tmp_path / name, warmup__stages=[]))
        folder.path.mkdir(parents=True)
        path = getattr(folder, name)
        path.write_text("".join(f'{{"step": {step}}}\n' for step in steps))
        before = path.read_bytes()
        if is_whole:
            check_records(config, folder, RunState(rl_step=3))
        else:
            with pytest.raises(DataError, match=rf"{name}\.jsonl, line \d: not {kind} of this run: .*Remedy: "):
                check_records(config, folder, RunState(rl_step=3))
        assert path.read_bytes() == before


def test_truncation_drops_later_steps_and_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    record = write_steps(path, 1, 2, 3)
    with path.open("a") as stream:
        stream.write('{"step": 4, "prom')
    record.truncate_after(2)
    assert [line["step"] for line in read_lines(path)] == [1, 1, 2, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["c.jsonl"]


def test_truncation_refuses_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"other": 1}\n')
    with pytest.raises(DataError, match=r"line 1: not a completion of this run: it has no step.*Remedy"):
        CompletionRecord(path).truncate_after(2)
    assert path.read_text() == '{"other": 1}\n'


# ---------------------------------------------------------------------------------------------------------- numbers


def one_step(state: RunState, updates: list[UpdateReport]) -> dict[str, float]:
    groups = [build_group(REQUESTS[0], [1.0, 0.0]), build_group(REQUESTS[1], [1.0, None])]
    report = RolloutReport(num_completions=4, prompt_tokens=80, cached_tokens=20, response_tokens=12)
    collected = Collected(groups=groups, report=report, counts=StepCounts(num_started=2))
    filtered = FilteredBatch(None, 1, {"too_few_known": ["t00001-g0001"]})
    add_to_state(state, collected, filtered, updates)
    return build_metrics(
        state.policy_version, collected, filtered, updates, {"rollout": 2.0}, 1e-3, rollout=RolloutSection()
    )


def test_metrics_of_a_step() -> None:
    state = RunState(policy_version=1)
    metrics = one_step(state, [])
    assert metrics["reward/mean"] == pytest.approx(2 / 3)  # over the three known verdicts
    assert metrics["reward/unknown"] == 1.0 and state.num_unknown == 1
    assert (metrics["reward/mean_low"], metrics["reward/mean_high"]) == (0.5, 0.75)
    assert metrics["rollout/response_tokens_mean"] == 2.0
    assert metrics["rollout/cached_fraction"] == 0.25
    assert metrics["perf/rollout_tokens_per_s"] == 6.0
    assert metrics["groups/filtered/too_few_known"] == 1.0
    assert "policy/loss" not in metrics
    assert state.groups == GroupCounts(started=2, trained=1, filtered={"too_few_known": 1})
    assert (state.prompt_tokens, state.cached_tokens) == (80, 20)


def test_gap_is_a_mean_over_the_fresh_tokens_of_finite_updates() -> None:
    state = RunState()
    for gap, tokens in ((0.1, 10), (math.nan, 1000), (0.4, 30)):
        metrics = {
            "policy/logprob_gap": UpdateMetric(value=gap, num_tokens=tokens),
            "policy/logprob_gap/staleness_1": UpdateMetric(value=7.0, num_tokens=50),
        }
        report = UpdateReport(
            loss=0.0, grad_norm=0.0, num_tokens=1000, num_response_tokens=1000, num_skipped=0, metrics=metrics
        )
        one_step(state, [report])
    assert state.logprob_gap_mean_abs == pytest.approx((0.1 * 10 + 0.4 * 30) / 40)


def measured(accuracy: float | None) -> dict[str, EvalResult]:
    return {"test": EvalResult(accuracy=accuracy, bounds=None)}


def summarise(state: RunState) -> dict[str, Any]:
    return build_summary(
        state,
        status="finished",
        wall_s=12.34567,
        seed=3,
        sampling_guarantee="none",
        weight_transport={"used": "exact", "reason": "it serves"},
    )


def test_summary_has_what_a_reader_may_count_on(tmp_path: Path) -> None:
    state = RunState(
        rl_step=7,
        policy_version=7,
        reward_means=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5, None],
        evals_before=measured(0.25),
        evals_latest=measured(0.75),
        groups=GroupCounts(started=10, trained=6, filtered={"zero_variance_all_right": 4}),
        gap_sum=2.0,
        gap_tokens=8,
        peak_rss_gib=1.23456,
        phase_seconds={"rollout": 1.0, "eval": 2.0},
    )
    write_summary(summarise(state), tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (summary["num_steps"], summary["policy_version_final"]) == (7, 7)
    assert (summary["eval_accuracy_before"], summary["eval_accuracy_after"]) == (0.25, 0.75)
    assert summary["reward_mean_first5"] == pytest.approx(0.2)
    assert summary["reward_mean_last5"] == pytest.approx(0.35)  # the step without a verdict does not count
    assert summary["groups"] == {"started": 10, "trained": 6, "filtered": {"zero_variance_all_right": 4}}
    assert summary["logprob_gap_mean_abs"] == 0.25
    assert summary["phase_seconds"] == {"rollout": 1.0, "train": 0.0, "sync": 0.0, "eval": 2.0}
    assert (summary["wall_s"], summary["peak_rss_gib"], summary["seed"]) == (12.346, 1.235, 3)
    assert summary["weight_transport"] == {"used": "exact", "reason": "it serves"}
    names = {"torch", "megatron_core", "sglang", "ray", "pyzmq", "wandb", "transformers"}
    assert summary["versions"].keys() == names


def test_what_was_never_measured_is_null(tmp_path: Path) -> None:
    write_summary(summarise(RunState(evals_before=measured(None))), tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    unmeasured = ["eval_accuracy_before", "eval_accuracy_after", "reward_mean_first5", "reward_mean_last5"]
    assert [summary[key] for key in [*unmeasured, "logprob_gap_mean_abs"]] == [None] * 5


def test_a_package_that_is_not_installed_does_not_cost_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(summary_module.PACKAGES, "wandb", "no-such-package-here")
    assert summarise(RunState())["versions"]["wandb"] is None
