"""KL to a reference and AEPO in the loop, with fakes at its seams: what is measured when, and what comes of it.

The fake trainer's reference is the number of updates at which it was taken; with each update the log-probabilities of
member 1 and that of the reference part by a quarter nat per token, of which a completion has two. Member 0 is right
(advantage above 0), member 1 wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hybridflow.algorithms.algorithm import Algorithm
from hybridflow.algorithms.spec import policy_spec
from hybridflow.errors import CheckpointError, TrainerError
from hybridflow.loop import train_loop
from hybridflow.loop.batch import build_batch, build_measured_batch
from hybridflow.loop.reference import check_reference
from hybridflow.loop.train_loop import train
from hybridflow.types import FilteredBatch, Measured
from tests.builders import build_group, build_prompt, build_request
from tests.unit.loop.fakes import FakeSystem, build_config
from tests.unit.loop.test_train_loop import fail_at

GATE = ["decode p00000", "compare"]
OFF = {"eval__num_prompts": 0, "algorithm__normalise_std": False}


def config_with(directory: Path, **changes: Any) -> Any:
    return build_config(directory, **(OFF | changes))


def with_kl(directory: Path, place: str, **changes: Any) -> Any:
    kl = {"place": place, "coefficient": 0.1, "reference": "start", "estimator": "k1"}
    return config_with(directory, **{f"algorithm__kl__{key}": value for key, value in kl.items()}, **changes)


def steps_of(system: FakeSystem) -> list[dict[str, Any]]:
    return [line for line in system.metrics() if "groups/started" in line]


def test_by_default_nothing_is_measured(tmp_path: Path) -> None:
    system = FakeSystem(config_with(tmp_path, train__num_steps=1))
    train(system.run)
    assert system.events == ["publish 0", *GATE, "decode t00001", "update", "publish 1", "save", "export"]
    assert not any(name.startswith(("aepo/", "reward/kl", "time/reference")) for name in steps_of(system)[0])


def test_kl_in_the_loss_takes_a_pass_of_the_reference_which_the_run_folder_keeps(tmp_path: Path) -> None:
    system = FakeSystem(with_kl(tmp_path, "loss", train__num_steps=2))
    train(system.run)
    assert system.events == [
        *["reference 0", "publish 0", *GATE],
        *["decode t00001", "measure ref_logprobs", "update", "publish 1"],
        *["decode t00002", "measure ref_logprobs", "update", "publish 2", "save", "export"],
    ]
    assert (system.folder.reference / "weights").read_text() == "0"
    second = system.trainer.batches[1].sequences
    assert [row.measured["ref_logprobs"] for row in second[:2]] == [[-0.5, -0.5], [-0.75, -0.75]]
    assert [row.advantage for row in second[:2]] == [0.5, -0.5], "rewards are not touched"
    assert steps_of(system)[0]["time/reference_s"] >= 0
    assert "reference" in system.run.state.phase_seconds


def test_kl_in_the_reward_is_subtracted_before_advantages(tmp_path: Path) -> None:
    """Step 2: the price of member 1 is 0.1 x 2 tokens x 0.25; rewards 1 and 0 become 1 and -0.05."""
    system = FakeSystem(with_kl(tmp_path, "reward", train__num_steps=2))
    train(system.run)
    assert [event for event in system.events if event.startswith("measure")] == [
        *["measure old_logprobs", "measure ref_logprobs"] * 2
    ]
    first, second = (batch.sequences for batch in system.trainer.batches)
    assert [row.advantage for row in first[:2]] == pytest.approx([0.5, -0.5])
    assert [row.advantage for row in second[:2]] == pytest.approx([0.525, -0.525])
    assert second[0].measured["old_logprobs"] == [-0.5, -0.5], "the update makes no pass for them again"
    told = steps_of(system)
    assert [line["reward/kl_mean"] for line in told] == pytest.approx([0.0, 0.025])
    assert [line["reward/mean"] for line in told] == [0.5, 0.5], "the verdicts alone"
    prices = [line["kl_price"] for line in system.completions() if line["step"] == 2]
    assert prices == pytest.approx([0.0, 0.05] * 4)


def test_a_reference_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """Every update would be skipped, one step after the other."""
    system = FakeSystem(with_kl(tmp_path, "loss", train__num_steps=1))
    measure = system.trainer.measure
    not_a_number = {"ref_logprobs": [float("nan")] * 2}
    system.trainer.measure = lambda batch, columns: [row | not_a_number for row in measure(batch, columns)]  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainerError, match=r"algorithm.kl.reference = 'start' gives t00001-g\S+ a log-prob"):
        train(system.run)


def test_a_reference_is_taken_after_the_warm_up(tmp_path: Path) -> None:
    stage = {"name": "skill", "num_steps": 1, "learning_rate": 1e-2, "conversations_per_step": 2, "num_questions": 1}
    system = FakeSystem(with_kl(tmp_path, "loss", train__num_steps=1, warmup__stages=[stage]))
    train(system.run)
    assert system.events[:6] == ["reset optimizer", "sft", "reset optimizer", "save", "reference 0", "publish 0"]


def test_a_resumed_run_has_the_reference_that_it_had(tmp_path: Path) -> None:
    """Another process, after two steps: not the weights that it resumes with, but those in the run folder."""
    config = with_kl(tmp_path, "loss", train__num_steps=4, checkpoint__every_steps=2)
    stopped = FakeSystem(config)
    stopped.trainer.update = fail_at(stopped.trainer.update, 3)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainerError):
        train(stopped.run)
    again = FakeSystem(config, is_resumed=True)
    train(again.run)
    assert again.trainer.weights == 4 and again.events[:2] == ["reference 0", "publish 2"]
    assert again.trainer.batches[0].sequences[1].measured["ref_logprobs"] == [-1.0, -1.0]


def test_a_reference_that_is_gone_or_cut_short_is_refused_with_the_remedy(tmp_path: Path) -> None:
    system = FakeSystem(with_kl(tmp_path, "loss", train__num_steps=1))
    train(system.run)
    folder = system.folder.reference
    check_reference(folder)
    (folder / "weights").write_text("")
    with pytest.raises(CheckpointError, match=r"weights has 0 bytes, but 1 were written.* restore .*run.name="):
        check_reference(folder)
    (folder / "weights").unlink()
    with pytest.raises(CheckpointError, match="weights is missing"):
        check_reference(folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"there is no folder .*reference.* algorithm.kl"):
        check_reference(folder)


AEPO = {"algorithm__aepo__high": 0.5, "algorithm__aepo__low": 0.3}


def test_aepo_leaves_negative_completions_out_from_above_high_until_below_low(tmp_path: Path) -> None:
    system = FakeSystem(config_with(tmp_path, train__num_steps=5, **AEPO))
    system.trainer.entropies = [0.4, 0.6, 0.4, 0.2, 0.4]
    train(system.run)
    assert [event for event in system.events if event.startswith("measure")] == ["measure old_logprobs entropy"] * 5
    signs = [{row.advantage > 0 for row in batch.sequences} for batch in system.trainer.batches]
    assert signs == [{True, False}, {True}, {True}, {True, False}, {True, False}]
    told = steps_of(system)
    assert [line["aepo/masking"] for line in told] == [0, 1, 1, 0, 0]
    assert [line["aepo/masked_fraction"] for line in told] == [0, 0.5, 0.5, 0, 0]
    assert [line["aepo/entropy"] for line in told] == pytest.approx([0.4, 0.6, 0.4, 0.2, 0.4])


def test_whether_aepo_masks_goes_on_after_a_stop(tmp_path: Path) -> None:
    config = config_with(tmp_path, train__num_steps=3, checkpoint__every_steps=2, **AEPO)
    stopped = FakeSystem(config)
    stopped.trainer.entropies = [0.6, 0.4, 0.4]
    stopped.trainer.update = fail_at(stopped.trainer.update, 3)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TrainerError):
        train(stopped.run)
    again = FakeSystem(config, is_resumed=True)
    again.trainer.entropies = [0.4]
    train(again.run)
    assert steps_of(again)[-1]["aepo/masking"] == 1
    assert {row.advantage > 0 for row in again.trainer.batches[0].sequences} == {True}


def advantages_of(found: list[list[float | None]], config: Any) -> Algorithm:
    """An algorithm without filters that gives these advantages."""
    return Algorithm((), lambda groups, rewards: found, (), policy_spec(config.algorithm))


def test_a_group_without_a_positive_completion_is_dropped_with_the_reason(tmp_path: Path) -> None:
    """No advantage within a group does that, but one of the user's own may. A completion at 0 stays."""
    config = config_with(tmp_path, train__layout={"tp": 1})
    groups = [
        build_group(build_request(build_prompt(token_ids=[1]), 2, group_id=f"g{n}"), [1.0, 0.0]) for n in range(2)
    ]
    masked = Measured(leaves_out_negative=True)
    some_left = advantages_of([[-1.0, -2.0], [0.0, -1.0]], config)
    filtered = build_batch(groups, config, algorithm=some_left, measured=masked)
    assert (filtered.num_groups, filtered.dropped) == (1, {"aepo_masked": ["g0"]})
    assert filtered.masked_fraction == 0.75
    none_left = advantages_of([[-1.0, -2.0]] * 2, config)
    filtered = build_batch(groups, config, algorithm=none_left, measured=masked)
    assert filtered.batch is None and filtered.dropped == {"aepo_masked": ["g0", "g1"]}


def test_a_step_of_which_nothing_is_left_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = FilteredBatch(None, 0, {"aepo_masked": ["g"]})
    monkeypatch.setattr(train_loop, "build_batch", lambda *arguments, **keywords: nothing)
    system = FakeSystem(config_with(tmp_path, train__num_steps=1, **AEPO))
    train(system.run)
    measured = ["decode t00001", "measure old_logprobs entropy"]
    assert system.events == ["publish 0", *GATE, *measured, "save", "export"]
    assert (system.run.state.policy_version, system.trainer.weights) == (0, 0)


def test_every_token_of_every_completion_with_a_verdict_is_measured(tmp_path: Path) -> None:
    """In the groups that the filters keep; stale tokens, too, though they are not learnt from."""
    config = config_with(tmp_path, train__layout={"tp": 1}, algorithm__mask_stale_tokens=True)
    kept = build_group(build_request(build_prompt(token_ids=[1]), 3, group_id="kept"), [1.0, None, 0.0])
    dropped = build_group(build_request(build_prompt(token_ids=[1]), 2, group_id="dropped"), [1.0, 1.0])
    batch = build_measured_batch([kept, dropped], config)
    assert batch is not None
    assert [row.sequence_id for row in batch.sequences] == ["kept-c00", "kept-c02"]
    assert [row.loss_mask for row in batch.sequences] == [[1, 1]] * 2 and len(batch.plan) == 1
    assert build_measured_batch([dropped], config) is None
