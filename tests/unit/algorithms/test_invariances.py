"""The invariance suite: registered parts keep their promises, and a broken one is found by the check meant for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridflow.algorithms.invariances.of_tokens import TokenPart, check_tokens
from hybridflow.algorithms.invariances.rows import MadeRows
from hybridflow.algorithms.invariances.suite import REGISTRIES, Kind, check_part, guess_kind
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.errors import ConfigError
from megatron_ext.packing.rows import Rows

PARAMETERS = AlgorithmSection().model_dump()
BROKEN = """
import torch
def mean_inside(logprobs, advantages):
    return -logprobs * advantages / logprobs.numel()
def order_of_rows(logprobs, advantages):
    return -logprobs * advantages * torch.arange(1, 1 + logprobs.numel())
def not_a_number(logprobs, advantages):
    return (logprobs * advantages).sqrt()
def overflow(logprobs, old_logprobs, advantages):
    return -(logprobs - old_logprobs).exp() * advantages
def no_gradient(logprobs, advantages):
    return (-logprobs * advantages).detach()
def chance(logprobs):
    return -logprobs * torch.rand(logprobs.shape)
def in_place(logprobs, advantages):
    return -logprobs * advantages.mul_(2.0)
def single(logprobs):
    return -logprobs.float()
def largest(logprobs):
    return logprobs - logprobs.max()
def of_group(logprobs, rows):
    sums = rows.sum(logprobs)
    same = (rows.group_ids_R[:, None] == rows.group_ids_R).to(sums.dtype)
    return -rows.spread(same @ sums)
def hangs(logprobs, rows):
    return -rows.spread(rows.sum(logprobs)) if logprobs.numel() % 2 else -logprobs
def of_here(logprobs, rows):
    total = torch.zeros(len(rows.count_R), dtype=logprobs.dtype).index_add(0, rows.row_N, logprobs)
    return -rows.spread(total)
def by_spread(groups, rewards):
    known = [[r for r in of_group if r is not None] for of_group in rewards]
    return [
        [None if r is None else r / (max(k) - min(k)) for r in of_group] for of_group, k in zip(rewards, known)
    ]
def by_place(rewards):
    return [[None if r is None else r * place for place, r in enumerate(of_group)] for of_group in rewards]
def by_group(rewards):
    return [[None if r is None else r * place for r in of_group] for place, of_group in enumerate(rewards)]
def turns(groups, rewards):
    groups[0].members.reverse()
    return rewards
def first_wrong(rewards):
    return "first_wrong" if rewards[0] == 0 else None
calls = []
def every_other(group):
    calls.append(group)
    return "every_other" if len(calls) % 2 else None
"""


@pytest.fixture
def parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    (tmp_path / "broken_parts.py").write_text(BROKEN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield PARAMETERS | {"module_folders": [str(tmp_path)]}
    sys.modules.pop("broken_parts", None)


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_registered_part_keeps_its_promises(kind: Kind) -> None:
    for name in REGISTRIES[kind].names:
        outcomes = list(check_part(kind, name, PARAMETERS))
        assert len(outcomes) >= 3
        assert [f"{name}: {one.check}: {one.told}" for one in outcomes if not one.is_kept] == []


@pytest.mark.parametrize(
    ("kind", "name", "broken", "told"),
    [
        (
            "loss",
            "mean_inside",
            ["packing", "micro-batch size", "data parallel", "context parallel"],
            "two micro-batches",
        ),
        (
            "loss",
            "order_of_rows",
            ["order of rows", "packing", "micro-batch size", "data parallel", "context parallel"],
            "",
        ),
        ("loss", "not_a_number", ["ordinary values"], "loss of token 0 of row 2 is nan"),
        ("loss", "overflow", ["extreme ratios"], "log ratios of 30 to 300: loss of token 0 of row 2 is inf"),
        ("loss", "no_gradient", ["ordinary values"], "no gradient comes from it"),
        ("loss", "in_place", ["inputs untouched"], "it changes advantages in place"),
        ("loss", "of_here", ["context parallel"], "rows cut over two ranks"),
        ("advantage", "by_place", ["order of members"], "members in reverse"),
        ("advantage", "by_group", ["order of groups"], "groups in reverse"),
        ("advantage", "by_spread", ["equal rewards"], "it raised"),
        ("filter", "first_wrong", ["order of members"], "members in reverse: group t00001-g"),
    ],
)
def test_a_broken_part_is_found(
    kind: Kind, name: str, broken: list[str], told: str, parameters: dict[str, Any]
) -> None:
    found = [one for one in check_part(kind, f"broken_parts:{name}", parameters) if not one.is_kept]
    assert [one.check for one in found] == broken
    assert told in found[0].told


@pytest.mark.parametrize(
    ("kind", "name", "broken"),
    [
        ("loss", "chance", "repeatable"),
        ("loss", "hangs", "context parallel"),
        ("loss", "single", "float64"),
        ("loss", "largest", "no tokens"),
        ("loss", "of_group", "gradient"),
        ("advantage", "turns", "inputs untouched"),
        ("filter", "every_other", "repeatable"),
        ("metrics", "mean_inside", "packing"),
    ],
)
def test_a_check_that_a_broken_part_does_not_pass(
    kind: Kind, name: str, broken: str, parameters: dict[str, Any]
) -> None:
    found = {one.check: one for one in check_part(kind, f"broken_parts:{name}", parameters)}
    assert not found[broken].is_kept
    assert name != "hangs" or "a run hangs" in found[broken].told


def test_a_metric_with_a_graph_is_found() -> None:
    part = TokenPart(lambda tokens: {"own": -tokens.logprobs_N}, (), is_loss=False)
    assert [one.check for one in check_tokens(part) if not one.is_kept] == ["gradient"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gspo", "loss"),
        ("rloo", "advantage"),
        ("same_reward", "filter"),
        ("policy_ratio", "metrics"),
        ("constant", "aggregation"),
    ],
)
def test_the_kind_of_a_registered_part(name: str, kind: Kind) -> None:
    assert guess_kind(name, PARAMETERS).kind == kind


def test_the_kind_of_a_function(parameters: dict[str, Any]) -> None:
    names = {"overflow": "loss", "no_gradient": "metrics", "by_spread": "advantage", "every_other": "filter"}
    for name, kind in names.items():
        assert guess_kind(f"broken_parts:{name}", parameters).kind == kind
    with pytest.raises(ConfigError, match=r"no part of an algorithm is named 'clap'\. Remedy: did you mean 'clip'"):
        guess_kind("clap", parameters)


def test_made_up_rows_are_those_of_the_trainer() -> None:
    """Sums, means and their spread as `megatron_ext` has them, on rows of 2, 0 and 1 positions."""
    real = Rows.of([2, 0, 1], [4, 5, 6], [0, 0, 1])
    made = MadeRows(real.row_N, real.row_ids_R, real.group_ids_R, real.count_R)
    values_N = torch.tensor([1.0, 3.0, 5.0])
    for rows in (real, made):
        assert rows.sum(values_N).tolist() == [4.0, 0.0, 5.0]
        assert rows.mean(values_N).tolist() == [2.0, 0.0, 5.0]
        assert rows.spread(rows.mean(values_N)).tolist() == [2.0, 2.0, 5.0]
