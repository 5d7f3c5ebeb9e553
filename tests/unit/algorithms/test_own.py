"""Functions of a user's own as parts of an algorithm: what they are given, what they may return, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridflow.algorithms.algorithm import build_algorithm
from hybridflow.algorithms.objective import TokenBatch, build_objective
from hybridflow.algorithms.own.columns import OF_ROWS, token_columns
from hybridflow.algorithms.registry import ADVANTAGES, FILTERS, MEASURES, TERMS
from hybridflow.algorithms.spec import AlgorithmSpec, ObjectiveSpec
from hybridflow.errors import ConfigError
from hybridflow.trainer.batch import OF_ROW
from tests.builders import build_group, build_request

OWN = """
import torch
seen = []
def plain(logprobs, advantages):
    return -logprobs * advantages
def all_of_it(tokens, rows, old_logprobs, floor=0.5, top=2.0):
    return tokens.logprobs_N * floor * top + 0 * old_logprobs
def of_groups(groups, rewards):
    return [[None if r is None else 2 * r for r in of_group] for of_group in rewards]
def as_array(rewards):
    return torch.tensor([[1.0, 2.0]] * len(rewards), dtype=torch.float64)
def wrong_task(group, rewards):
    return "wrong_task" if group.prompt.data_source == "s" and rewards[0] == 1.0 else None
def unlikely(logprobs):
    return logprobs < -1
def needs(logprobs, gamma):
    return logprobs * gamma
def several(*tensors):
    return tensors[0]
def anything(**tensors):
    return tensors["logprobs"]
def by_position(logprobs, /):
    return logprobs
async def later(logprobs):
    return logprobs
def steps(logprobs):
    yield logprobs
def unnamed(tokens):
    return tokens.columns["advantages"]
def raises(logprobs):
    return 1 / 0
def scalar(logprobs):
    return logprobs.sum()
def column(logprobs):
    return logprobs[:, None]
def nothing(logprobs):
    pass
def whole_numbers(logprobs):
    return logprobs.long()
def short(rewards):
    return rewards[:-1]
def flat(rewards):
    return [1.0 for _ in rewards]
def few(rewards):
    return [of_group[:-1] for of_group in rewards]
def not_a_number(rewards):
    return [[float("nan") for _ in of_group] for of_group in rewards]
def words(rewards):
    return [["much" for _ in of_group] for of_group in rewards]
def careless(rewards):
    return [[r - 1 for r in of_group] for of_group in rewards]
def yes(group):
    return True
def sentence(group):
    return f"mean is {sum(m.verdict.value for m in group.members)}"
def leaves(logprobs):
    raise SystemExit(0)
value = 3
class Part:
    def __init__(self, logprobs):
        pass
"""
NAMES = {"loss": TERMS, "advantage": ADVANTAGES, "filter": FILTERS, "metrics": MEASURES}


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield [str(tmp_path)]
    sys.modules.pop("own_parts", None)


def build(kind: str, name: str, folders: list[str], **parameters: float) -> Any:
    return NAMES[kind].build(f"own_parts:{name}", {"module_folders": folders, "parameters": parameters})


def tokens(**columns: list[float]) -> TokenBatch:
    logprobs_N = torch.tensor([-0.5, -2.0], requires_grad=True)
    return TokenBatch(logprobs_N, {name: torch.tensor(values) for name, values in columns.items()})


def call(kind: str, part: Any) -> Any:
    """The part on two tokens, or on a group with rewards 1, 0 and unknown."""
    group = build_group(build_request(num_completions=3), [1.0, 0.0, None])
    if kind == "advantage":
        return part([group], [[1.0, 0.0, None]])
    if kind == "filter":
        return part(group)
    columns = {"advantages": [2.0, 1.0], "old_logprobs": [0.0, 0.0]}
    return part(tokens(**{name: columns[name] for name in part.columns}))


def test_a_loss_is_given_what_its_parameters_name(folders: list[str]) -> None:
    part = build("loss", "plain", folders)
    assert part.columns == ("advantages",)
    assert call("loss", part).loss_N.tolist() == [1.0, 2.0]
    part = build("loss", "all_of_it", folders, floor=3.0)
    assert part.columns == ("old_logprobs",)
    assert call("loss", part).loss_N.tolist() == [-3.0, -12.0]  # floor is set, top is its default
    assert not part.of_sequences


def test_values_of_a_metric_are_logged_under_the_name_of_its_function(folders: list[str]) -> None:
    part = build("metrics", "unlikely", folders)
    assert list(part.metrics) == ["own/unlikely"]
    found = part(tokens())["own/unlikely"]
    assert found.tolist() == [0.0, 1.0] and not found.requires_grad


def test_numbers_of_an_advantage_and_reason_of_a_filter(folders: list[str]) -> None:
    assert call("advantage", build("advantage", "of_groups", folders)) == [[2.0, 0.0, None]]
    array = build("advantage", "as_array", folders)
    assert array([build_group(build_request(num_completions=2), [1.0, 0.0])], [[1.0, 0.0]]) == [[1.0, 2.0]]
    assert call("filter", build("filter", "wrong_task", folders)) == "wrong_task"


def test_a_specification_names_them_where_registered_parts_have_their_names(folders: list[str]) -> None:
    given = {"module_folders": folders, "parameters": {}}
    objective = ObjectiveSpec(
        terms=["own_parts:plain"], aggregation="token_mean", measures=["own_parts:unlikely"], parameters=given
    )
    spec = AlgorithmSpec(
        filters=["own_parts:wrong_task"], advantage="own_parts:of_groups", objective=objective, parameters=given
    )
    right, wrong = (
        build_group(build_request(num_completions=2, group_id=g), s) for g, s in (("a", [0.0, 1.0]), ("b", [1.0, 0.0]))
    )
    kept, dropped = build_algorithm(spec).filter_groups([right, wrong])
    assert kept == [right] and dropped == {"wrong_task": ["b"]}
    sums = build_objective(objective)(tokens(advantages=[2.0, 1.0]))
    assert (sums.loss.item(), sums.denominator) == (3.0, 2)
    assert sums.metrics.sums["own/unlikely"].item() == 1.0


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("loss", "needs", "it takes 'gamma', which nobody gives. Remedy: take of logprobs, advantages, "),
        ("loss", "several", "it takes *tensors: what it is given goes by name. Remedy: name each of its parameters"),
        ("loss", "anything", "it takes *tensors: what it is given goes by name"),
        ("loss", "by_position", "it takes logprobs, by position alone"),
        ("loss", "later", "it is a coroutine (async def). Remedy: name a plain function (def)"),
        ("loss", "steps", "it is a generator (yield)"),
        ("loss", "Part", "it is a class"),
        ("loss", "value", "'own_parts:value' is a int. Remedy: name a function"),
        ("loss", "plane", "has no 'plane'. Remedy: did you mean 'plain'?"),
        ("loss", "unnamed", "it raised KeyError: 'advantages' ("),
        ("loss", "raises", "own_parts.py, line 31, in raises)"),
        ("loss", "leaves", "it raised SystemExit: 0 ("),
        ("loss", "scalar", "it returned float32 of shape [] for 2 tokens. Remedy: return a tensor of shape [N]"),
        ("loss", "column", "it returned float32 of shape [2, 1] for 2 tokens"),
        ("loss", "nothing", "it returned None. Remedy: return a tensor of shape [N]"),
        ("loss", "whole_numbers", "it returned int64 of shape [2]. Remedy: return numbers of the dtype of logprobs"),
        ("metrics", "scalar", "algorithm.metrics = 'own_parts:scalar': it returned float32 of shape []"),
        ("advantage", "short", "it returned a list of length 0 for 1 groups. Remedy: return a list with a list of"),
        ("advantage", "flat", "it returned 1.0 for group g, rewards [1.0, 0.0, None]. Remedy: return a list of 3"),
        ("advantage", "few", "it returned a list of length 2 for group g"),
        ("advantage", "not_a_number", "it returned nan for a member of group g, rewards [1.0, 0.0, None]"),
        ("advantage", "words", "it returned 'much' for a member of group g"),
        ("advantage", "careless", "a reward is None where the verdict is unknown: leave it out of sums"),
        ("filter", "yes", "it returned True for group g. Remedy: return None to keep a group, or a short name"),
        ("filter", "sentence", "it raised AttributeError: 'Unknown' object has no attribute 'value' ("),
        ("filter", "plain", "it takes 'logprobs', which nobody gives. Remedy: take of group, rewards"),
    ],
)
def test_what_is_refused(kind: str, name: str, told: str, folders: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        call(kind, build(kind, name, folders))
    assert f"algorithm.{kind} = 'own_parts:{name}': " in str(caught.value)
    assert told in str(caught.value) and "Remedy: " in str(caught.value)


def test_a_module_that_is_not_there_is_told_with_the_places_that_were_searched(folders: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"algorithm.loss = 'own_part:plain': .* did you mean 'own_parts'\?"):
        TERMS.build("own_part:plain", {"module_folders": folders})


def test_columns_that_may_be_named_are_those_that_the_trainer_makes() -> None:
    assert set(OF_ROWS) == set(OF_ROW)
    assert {"advantages", "old_logprobs", "rollout_logprobs", "staleness", "entropy"} <= set(token_columns())
    assert not {"ids", "sampling_mask", "experts"} & set(token_columns())
