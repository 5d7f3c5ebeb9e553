"""A verifier of a user's own: what it is given, what it may return, where it failed, and several of them at once."""

from __future__ import annotations

import functools
import gc
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hybridflow import find_function
from hybridflow.config.load import load_config
from hybridflow.config.paths import add_module_folders
from hybridflow.config.reward_sections import RewardSection
from hybridflow.config.section import Section
from hybridflow.errors import ConfigError
from hybridflow.rewards.judge_verdict import combine, find_prediction
from hybridflow.rewards.own_function import OwnFunction
from hybridflow.rewards.registry import Registry, build_registry
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

PROMPT = [{"role": "user", "content": "Which one?"}]
REQUEST = ScoreRequest(
    completion_id="c",
    data_source="own",
    ability="doc-qa",
    ground_truth="yen",
    text="<think>euro?</think>The answer is yen. It fell.",
    row=json.dumps({"prompt": PROMPT, "extra_info": {"level": 3}}),
)


class Root(Section):
    reward: RewardSection = RewardSection()


def ask(function: Callable[..., object], request: ScoreRequest = REQUEST) -> Verdict:
    return OwnFunction("m:f", function, "here").verify(request)


def given(function: Callable[..., object]) -> dict[str, Any]:
    """The arguments of the function, which returns them as JSON under "why"."""
    verdict = ask(function)
    assert isinstance(verdict, Scored), verdict
    return json.loads(verdict.why)


def tell(**arguments: object) -> dict[str, object]:
    return {"value": 0.5, "why": json.dumps(arguments)}


EVERYTHING = {
    "response": REQUEST.text,
    "answer": "yen",
    "ground_truth": "yen",
    "prompt": PROMPT,
    "data_source": "own",
    "extra_info": {"level": 3},
}


def test_it_is_given_what_it_takes_by_name() -> None:
    def some(ground_truth: str, response: str, strict: bool = True) -> object:
        return tell(ground_truth=ground_truth, response=response, strict=strict)

    assert given(lambda **everything: tell(**everything)) == EVERYTHING
    assert given(some) == {"ground_truth": "yen", "response": REQUEST.text, "strict": True}
    assert given(lambda answer, /, *, extra_info: tell(a=answer, e=extra_info)) == {"a": "yen", "e": {"level": 3}}


def test_a_function_for_verl_is_called_as_it_is() -> None:
    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> object:
        return {"score": 0.25, "acc": True, "pred": solution_str[-3:], "level": extra_info["level"]}

    expected = Scored(
        value=0.25, rule="m:f", extracted="ll.", why="as the verifier says", parts={"acc": 1.0, "level": 3.0}
    )
    assert ask(compute_score) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda text, ground_truth: float((text, ground_truth) == (REQUEST.text, "yen")),
        lambda text, gold, tolerance=0: float((text, gold) == (REQUEST.text, "yen")),
        lambda response, gold: float((response, gold) == (REQUEST.text, "yen")),
        lambda *both: float(both == (REQUEST.text, "yen")),
    ],
)
def test_the_old_form_takes_text_and_gold_by_position(function: Callable[..., object]) -> None:
    verdict = ask(function)
    assert isinstance(verdict, Scored) and verdict.value == 1.0


def test_without_a_mark_the_answer_is_the_whole_response_behind_the_thinking() -> None:
    request = ScoreRequest(
        completion_id="c", data_source="", ability="", ground_truth="7", text="<think>9?</think>\n7 \n"
    )
    verdict = ask(lambda answer, ground_truth: float(answer == ground_truth), request)
    assert verdict == Scored(value=1.0, rule="m:f", extracted="", why="as the verifier says")


def test_only_what_a_function_takes_of_a_row_travels_with_it() -> None:
    taken = [
        OwnFunction("m:f", function, "here").row_arguments
        for function in (lambda response: 1, lambda prompt: 1, lambda a, b: 1, lambda **all: 1)
    ]
    assert taken == [set(), {"prompt"}, set(), {"prompt", "extra_info"}]


async def later(response: str) -> float:
    return 1.0


def pieces(response: str) -> Iterator[float]:
    yield 1.0


class Later:
    async def __call__(self, response: str) -> float:
        return 1.0


class Once:
    def __call__(self, response: str, ground_truth: str) -> float:
        return float(ground_truth in response)

    def half(self, response: str) -> float:
        return 0.5


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda tokens, scores, device: 1,
            "needs 'tokens', 'scores', 'device', which nobody gives. Remedy: let it take",
        ),
        (lambda response, tokens: 1, "needs 'tokens'"),
        (lambda ground_truth, text: 1, "needs 'text'"),
        (lambda response, *, tokenizer: 1, "needs 'tokenizer'"),
        (lambda: 1, "takes no argument. Remedy"),
        (later, "it is a coroutine (async def). Remedy: name a plain function"),
        (functools.wraps(later)(lambda response: later(response)), "it is a coroutine (async def). Remedy"),
        (functools.partial(later, response=""), "it is a coroutine"),
        (Later(), "it is a coroutine"),
        (pieces, "it is a generator (yield)"),
        (dict, "it is a class"),
    ],
)
def test_arguments_that_nobody_gives_are_refused_before_anything_starts(
    function: Callable[..., object], said: str
) -> None:
    with pytest.raises(ConfigError, match=r"^here: ") as caught:
        OwnFunction("m:f", function, "here")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (1, 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        ({"value": 0.5, "score": 1}, 0.5),
        ({"score": np.float64(0.25)}, 0.25),
        (Scored(value=0.5, rule="r", extracted="", why=""), 0.5),
    ],
)
def test_what_is_a_reward(result: object, value: float) -> None:
    verdict = ask(lambda response: result)
    assert isinstance(verdict, Scored) and verdict.value == value


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "gave None"),
        (float("nan"), "gave nan"),
        ("yes", "gave 'yes'"),
        (True, "gave True, which is no verdict and no number from 0 to 1: write float(...)"),
        (np.bool_(True), "gave np.True_, which is no verdict and no number from 0 to 1: write float(...) around the"),
        (np.array(1.0), "gave array(1.), which is no verdict and no number from 0 to 1: write float(...) around it"),
        (
            {"score": Decimal(1)},
            "gave {'score': Decimal('1')}, which is no verdict and no number from 0 to 1: write fl",
        ),
        ((number for number in [1.0]), "gave <generator object "),
        (10**400, "gave 1000"),
        ({"value": 1, "digits": 10**400}, "gave inf for its part 'digits'"),
        (2.0, "gave 2.0"),
        (-0.1, "gave -0.1"),
        ([1.0], "gave [1.0]"),
        ({"reward": 1}, "gave {'reward': 1}, which is no verdict and no number from 0 to 1: it has neither"),
        ({"value": None}, "gave {'value': None}"),
        ({"value": 1, "format": float("inf")}, "gave inf for its part 'format'"),
        (Scored(value=2.0, rule="r", extracted="", why=""), "gave Scored(value=2.0"),
    ],
)
def test_what_is_none_is_unknown_with_the_value(result: object, said: str) -> None:
    verdict = ask(lambda response: result)
    assert isinstance(verdict, Unknown) and f"the verifier m:f {said}" in verdict.why and verdict.rule == "m:f"


def test_what_it_raises_is_told_with_the_line_of_its_file() -> None:
    def fails(response: str) -> float:
        return json.loads("{")  # raised in a library, called from here

    def leaves(response: str) -> float:
        raise SystemExit(3)

    _, line = inspect.getsourcelines(fails)
    verdict = ask(fails)
    assert isinstance(verdict, Unknown)
    assert "raised JSONDecodeError: Expecting property name" in verdict.why
    assert f"({__file__}, line {line + 1}, in fails)" in verdict.why
    verdict = ask(leaves)
    assert isinstance(verdict, Unknown) and "raised SystemExit: 3" in verdict.why


def test_an_object_and_its_methods_are_called_like_functions() -> None:
    once = Once()
    request = msgspec.structs.replace(REQUEST, ground_truth="euro")
    called = [ask(function, request) for function in (once, once.half, functools.cache(once), functools.partial(once))]
    assert [verdict.value for verdict in called if isinstance(verdict, Scored)] == [1.0, 0.5, 1.0, 1.0]


def test_a_result_to_be_awaited_is_refused_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    verdict = ask(lambda response: later(response))
    assert isinstance(verdict, Unknown) and "write def instead of async def" in verdict.why
    gc.collect()
    assert not [warning for warning in recwarn if "never awaited" in str(warning.message)]


def test_whatever_it_raises_names_it_and_its_line() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def interrupts(response: str) -> float:
        raise KeyboardInterrupt

    def is_mute(response: str) -> float:
        raise MuteError

    for function in (interrupts, is_mute):
        verdict = ask(function)
        assert isinstance(verdict, Unknown)
        assert verdict.why.startswith("the verifier m:f raised ") and f"in {function.__name__})" in verdict.why


def test_texts_that_it_returns_can_be_sent() -> None:
    verdict = ask(lambda response: {"value": 1, "extracted": 42, "why": "half \ud800 " + "x" * 9999})
    assert isinstance(verdict, Scored) and verdict.extracted == "42" and len(verdict.why.encode()) < 3000
    verdict = ask(lambda response: {"value": 1, "half \ud800": 1.0, "x" * 9999: 2.0})
    assert isinstance(verdict, Scored) and verdict.parts == {"half ?": 1.0, "x" * 100: 2.0}
    verdict = ask(lambda response: {"value": 1} | {f"part {number}": 0.5 for number in range(101)})
    assert verdict == Unknown(why="the verifier m:f gave 101 parts, where 100 may be", rule="m:f")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a configuration and modules beside it, which is not the working folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    beside = tmp_path / "beside"
    beside.mkdir()
    (beside / "own_neighbour.py").write_text("HALF = 0.5\n")
    (beside / "own_one.py").write_text(
        "from own_neighbour import HALF\n"
        "def half(response): return HALF\n"
        "def one(response): return {'value': 1, 'x': 3}\n"
    )
    (beside / "own_broken.py").write_text("import json\n\n1 / 0\n")
    (beside / "own_syntax.py").write_text("def f(:\n")
    (beside / "random.py").write_text("def f(response): return 1\n")
    yield beside
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def build(folder: Path, toml: str) -> Registry:
    path = folder / "run.toml"
    path.write_text(toml)
    return build_registry(add_module_folders(load_config([path], [], Root).reward, [path]))


def test_it_is_found_beside_the_configuration_and_in_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_here.py").write_text("def zero(response): return 0\n")
    toml = '[reward.rules.verifiers]\nown = "own_one:half"\nhere = "own_here:zero"\n'
    registry = build(folder, toml)
    values = [registry.verify(ScoreRequest(completion_id="", data_source=name, ability="", ground_truth="", text=""))
              for name in ("own", "here")]  # fmt: skip
    assert [verdict.value for verdict in values if isinstance(verdict, Scored)] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_onen:half", ["ModuleNotFoundError", "looked in {folder}", "did you mean 'own_one'?"]),
        ("own_one:haf", ["own_one.py has no 'haf'", "did you mean 'half'?"]),
        ("own_broken:f", ["ZeroDivisionError", "{folder}/own_broken.py, line 3", "Remedy: mend it"]),
        ("own_syntax:f", ["SyntaxError", "{folder}/own_syntax.py, line 1"]),
        ("random:f", ["{folder}/random.py has the name of a module that is loaded already", "Remedy: rename the file"]),
    ],
)
def test_what_does_not_load_is_named_with_file_and_line(folder: Path, name: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(folder, f'[[reward.functions]]\ncall = "{name}"\n')
    missing = [word for word in words if word.format(folder=folder) not in str(caught.value)]
    assert missing == [], str(caught.value)


@pytest.mark.timeout(120, method="thread")  # by signal, it would hold the clock that the import is given up by
def test_an_import_that_does_not_end_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_waits.py").write_text("import time\n\ntime.sleep(3600)\n")
    monkeypatch.setattr(find_function, "IMPORT_S", 0.2)
    with pytest.raises(ConfigError, match=r"takes longer than 0.2 s \(.*own_waits.py, line 3\)\. Remedy: mend it"):
        build(folder, '[[reward.functions]]\ncall = "own_waits:f"\n')
    assert "own_waits" not in sys.modules


def test_the_mean_by_weight_with_each_value_under_its_name(folder: Path) -> None:
    toml = """
[[reward.functions]]
call = "own_one:half"
weight = 3
[[reward.functions]]
call = "own_one:one"
name = "form"
"""
    verdict = build(folder, toml).verify(REQUEST)
    assert isinstance(verdict, Scored) and verdict.value == (3 * 0.5 + 1) / 4
    assert verdict.parts == {"half": 0.5, "form": 1.0, "form/x": 3.0} and verdict.rule == "half + form"


def test_the_judge_decides_on_the_rule_among_several_and_else_on_the_mean(folder: Path) -> None:
    """The rule gives 0 for "yen" against "euro": with weight 3 of 4 a YES adds three quarters."""
    functions = '[[reward.functions]]\ncall = "own_one:half"\n'
    rule = '[[reward.functions]]\ncall = "rule"\nweight = 3\nname = "accuracy"\n'
    request = ScoreRequest(
        completion_id="c", data_source="own", ability="doc-qa", ground_truth="euro", text="The answer is yen."
    )
    verdict = build(folder, functions + rule).verify(request)
    assert isinstance(verdict, Scored) and verdict.value == 0.125
    assert find_prediction(verdict, request.text) == "yen"
    yes = combine(verdict, "yes", "judge", "same")
    assert isinstance(yes, Scored) and yes.value == 0.875 and yes.parts == {"half": 0.5, "accuracy": 1.0}
    no = combine(verdict, "no", "judge", "other")
    assert isinstance(no, Scored) and no.value == 0.125
    alone = build(folder, functions).verify(request)
    assert isinstance(alone, Scored)
    yes = combine(alone, "yes", "judge", "same")
    assert isinstance(yes, Scored) and (yes.value, yes.rule_value) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('functions = [{call="a:f"}, {call="b:f"}]', ["two functions of the name 'f' (a:f, b:f)", 'name = "f_2"']),
        ('functions = [{call="a:f", weight=0}]', ["the weights of reward.functions (f) sum to 0", "weight above 0"]),
        ('functions = [{call="a:f", weight=-1}]', ["functions.0.weight = -1", "give a value of at least 0"]),
        ('functions = [{call="a:f", weight=nan}]', ["functions.0.weight"]),
        ('functions = [{call="my/a.py:f"}]', ['remedy: write "a:f"']),
        ('functions = [{call="a:f"}]\nrules.verifiers.own = "docqa"', ["verifiers (own) would never be asked"]),
        ('rules.verifiers.own = "a.py:f"', ['remedy: write "a:f"']),
    ],
)
def test_a_wrong_section_is_refused(tmp_path: Path, toml: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(tmp_path, "[reward]\n" + toml)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
