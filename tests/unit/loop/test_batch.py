"""The overlong penalty between filters and advantages, by hand: limit 8, buffer 4, groups of three."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest

from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.loop.batch import build_batch, split_evenly
from hybridflow.types import Group, TokenColumns, VersionRun
from tests.builders import build_group, build_prompt, build_request, with_completion
from tests.unit.loop.fakes import build_config


def group_of(group_id: str, rewards: list[float | None], lengths: list[int]) -> Group:
    request = build_request(build_prompt(token_ids=[1, 2], data_source="synth_easy"), len(rewards), group_id=group_id)
    group = build_group(request, rewards)
    members = [
        with_completion(member, tokens=TokenColumns(ids=[5] * length, rollout_logprobs=[-1.0] * length))
        for member, length in zip(group.members, lengths, strict=True)
    ]
    return msgspec.structs.replace(group, members=members)


def config_with(directory: Path, **changes: object) -> Config:
    return build_config(directory, rollout__max_new_tokens=8, train__layout={"tp": 1}, **changes)


def test_advantages_come_from_the_sum_and_filters_see_the_reward_alone(tmp_path: Path) -> None:
    """Lengths 3, 6, 8 cost 0, 2/4 and 4/4. Rewards 1, 1, 0 become 1, 1/2, -1: mean 1/6.

    The second group has equal rewards: lengths that differ do not save it from the filter.
    """
    groups = [group_of("g0", [1.0, 1.0, 0.0], [3, 6, 8]), group_of("g1", [1.0, 1.0, 1.0], [3, 6, 8])]
    config = config_with(tmp_path, reward__overlong__buffer_tokens=4, algorithm__normalise_std=False)
    filtered = build_batch(groups, config)
    assert filtered.batch is not None
    assert filtered.dropped == {"zero_variance_all_right": ["g1"]}
    assert filtered.overlong == {"g0": [0.0, -0.5, -1.0], "g1": [0.0, -0.5, -1.0]}
    advantages = [sequence.advantage for sequence in filtered.batch.sequences]
    assert advantages == pytest.approx([1 - 1 / 6, 1 / 2 - 1 / 6, -1 - 1 / 6], abs=1e-12)


def test_the_deviation_is_that_of_the_sums(tmp_path: Path) -> None:
    """Sums 1, 0.5, -1: deviations 5/6, 1/3, -7/6 from their mean; n-1 variance (25 + 4 + 49) / 36 / 2 = 13/12."""
    config = config_with(tmp_path, reward__overlong__buffer_tokens=4)
    batch = build_batch([group_of("g0", [1.0, 1.0, 0.0], [3, 6, 8])], config).batch
    assert batch is not None
    scale = math.sqrt(13 / 12) + 1e-6
    expected = [5 / 6 / scale, 1 / 3 / scale, -7 / 6 / scale]
    assert [sequence.advantage for sequence in batch.sequences] == pytest.approx(expected, abs=1e-12)


def test_the_factor_scales_and_an_unknown_verdict_stays_out(tmp_path: Path) -> None:
    """Lengths 8, 4, 8 at factor 0.5: the sums of the known are 1 - 0.5 and 0, so advantages +-0.25."""
    config = config_with(
        tmp_path,
        reward__overlong__buffer_tokens=4,
        reward__overlong__penalty_factor=0.5,
        algorithm__normalise_std=False,
    )
    filtered = build_batch([group_of("g0", [1.0, 0.0, None], [8, 4, 8])], config)
    assert filtered.batch is not None
    assert filtered.overlong == {"g0": [-0.5, 0.0, -0.5]}
    assert [sequence.advantage for sequence in filtered.batch.sequences] == [0.25, -0.25]


def test_it_is_off_by_default(tmp_path: Path) -> None:
    filtered = build_batch([group_of("g0", [1.0, 0.0], [8, 8])], config_with(tmp_path, algorithm__normalise_std=False))
    assert filtered.batch is not None
    assert (filtered.overlong, [s.advantage for s in filtered.batch.sequences]) == ({}, [0.5, -0.5])


# ------------------------------------------------------------------------------------------------------ mini-batches


@pytest.mark.parametrize(
    ("rows", "prompts", "expected"),
    [
        ([8, 8, 8, 8], None, [32]),
        ([8, 8, 8, 8], 1, [8, 8, 8, 8]),
        ([8, 8, 7, 8, 8], 2, [16, 15, 8]),
        ([8] * 100, 32, [200, 200, 200, 200]),  # not three of 32 and one of 4
        ([8], 32, [8]),
    ],
)
def test_mini_batches_are_of_about_equal_size(rows: list[int], prompts: int | None, expected: list[int]) -> None:
    assert split_evenly(rows, prompts) == expected


def test_a_plan_has_each_row_once_and_mini_batches_hold_whole_groups(tmp_path: Path) -> None:
    groups = [group_of(f"g{n}", [1.0, 0.0, None], [3, 4, 5]) for n in range(5)]
    config = config_with(tmp_path, train__mini_batch_prompts=2, train__prompts_per_step=5)
    batch = build_batch(groups, config).batch
    assert batch is not None
    rows_of_minis = [sorted(row for rank in mini for rows in rank for row in rows) for mini in batch.plan]
    assert rows_of_minis == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_mini_batch_larger_than_the_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.mini_batch_prompts \(9\) is above train.prompts_per_step \(4\)"):
        config_with(tmp_path, train__mini_batch_prompts=9)


def stale(group: Group, version: int) -> Group:
    """The same, its first member decoded by an older version to its second token, its last one by it alone."""
    first, *others, last = group.members
    runs = [VersionRun(version, 2), VersionRun(version + 1, first.num_tokens - 2)]
    members = [
        with_completion(first, policy_version=version + 1, versions=runs),
        *(with_completion(member, policy_version=version + 1) for member in others),
        with_completion(last, policy_version=version),
    ]
    return msgspec.structs.replace(group, members=members)


def test_stale_tokens_can_be_masked(tmp_path: Path) -> None:
    """Lengths 4, 3, 5: 2 and 5 tokens are of version 6, when 7 trains. The last row has none to learn from."""
    groups = [stale(group_of("g0", [1.0, 0.0, 1.0], [4, 3, 5]), 6)]
    seen = build_batch(groups, config_with(tmp_path), 7)
    assert seen.batch is not None
    assert (seen.num_stale_tokens, seen.num_tokens) == (7, 12)
    assert [row.loss_mask for row in seen.batch.sequences] == [[1] * 4, [1] * 3, [1] * 5]
    masked = build_batch(groups, config_with(tmp_path, algorithm__mask_stale_tokens=True), 7)
    assert masked.batch is not None
    assert [row.loss_mask for row in masked.batch.sequences] == [[0, 0, 1, 1], [1, 1, 1]]
    assert masked.num_stale_tokens == 7


def test_a_group_of_stale_tokens_alone_is_counted(tmp_path: Path) -> None:
    groups = [stale(group_of("g0", [1.0, 0.0], [2, 5]), 6)]
    filtered = build_batch(groups, config_with(tmp_path, algorithm__mask_stale_tokens=True), 7)
    assert (filtered.batch, filtered.num_groups, filtered.dropped) == (None, 0, {"all_stale": ["g0"]})
