"""A source of the user's own: found, tried, looked at, and refused where it is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hybridflow.config.sections import Config
from hybridflow.curriculum.own_source import OFFERED, OwnSource, build_own_source
from hybridflow.curriculum.source import restore_source, save_source
from hybridflow.errors import ConfigError
from tests.builders import build_prompt

ROOT = Path(__file__).parents[3]
PROMPTS = [build_prompt(f"p{n}") for n in range(4)]
EXAMPLE = re.search(r"## A source of your own\n\n```python\n(.*?)```", (ROOT / "docs/curriculum.md").read_text(), re.S)
BROKEN = """
from docs_example import Newest
class Short(Newest):
    def next(self, num_prompts): return super().next(num_prompts)[1:]
class Lacks:
    def next(self, num_prompts): return []
    def observe(self, groups): pass
class Foreign(Newest):
    def next(self, num_prompts): return ["p0"] * num_prompts
class Tuples(Newest):
    def state_dict(self): return {"place": (1, 2)}
class Raises(Newest):
    def next(self, num_prompts): return self.nothing
class Replaces(Newest):
    def replace(self, prompts): return [prompt for prompt in self.prompts for old in prompts if old is prompt]
class Nothing(Newest):
    def replace(self, prompts): return []
def replaces(prompts): return Replaces(prompts)
def nothing(prompts): return Nothing(prompts)
def short(prompts): return Short(prompts)
def lacks(): return Lacks()
def foreign(prompts): return Foreign(prompts)
def tuples(prompts): return Tuples(prompts)
def raises(prompts): return Raises(prompts)
def fails(prompts): raise KeyError("x")
def other(rows): return rows
def leaves(prompts): raise SystemExit(0)
def hangs(prompts):
    while True: pass
def empties(prompts):
    mine = Newest(prompts[:])
    prompts.clear()
    return mine
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert EXAMPLE is not None
    (tmp_path / "docs_example.py").write_text(EXAMPLE[1])
    (tmp_path / "docs_broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "docs_example", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "docs_broken", raising=False)
    return tmp_path


def build(call: str, folder: Path, **limit: float) -> Any:
    return build_own_source(call, [str(folder)], dict(zip(OFFERED, (PROMPTS, 7, 2), strict=True)), **limit)


def test_the_example_of_the_documentation_hands_out_and_goes_on(folder: Path) -> None:
    source = build("docs_example:newest", folder)
    assert [p.prompt_id for p in source.next(3)] == ["p3", "p2", "p1"]
    again = build("docs_example:newest", folder)
    restore_source(again, save_source(source), num_taken=0, path=Path("state.json"))
    assert [p.prompt_id for p in again.next(2)] == [p.prompt_id for p in source.next(2)] == ["p0", "p3"]
    assert isinstance(source, OwnSource) and source.name == "own docs_example:newest"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            "docs_missing:newest",
            "curriculum.source = 'docs_missing:newest'.*does not load: ModuleNotFoundError.*Remedy",
        ),
        ("docs_example:newst", "has no 'newst'. Remedy: did you mean 'newest'"),
        ("docs_broken:lacks", "returned a Lacks, which has no state_dict, load_state_dict. Remedy: "),
        ("docs_broken:tuples", r"state_dict\(\) gave .*, which JSON does not give back as it was. Remedy: "),
        ("docs_broken:fails", "it raised KeyError: 'x' .*docs_broken.py, line 25.*Remedy: "),
        ("docs_broken:leaves", "it raised SystemExit: 0 .*docs_broken.py, line 27.*Remedy: "),
        ("docs_broken:other", "it takes 'rows', which nobody gives. Remedy: take of prompts, seed, prompts_per_step"),
    ],
)
def test_what_is_no_source_is_refused_before_anything_starts(folder: Path, call: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(call, folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", r"next\(3\) gave 2 prompts. Remedy: return a list of 3"),
        ("foreign", r"next\(3\) gave 'str', which is none of the run's prompts. Remedy: "),
        ("raises", r"next\(\) raised AttributeError: .*nothing.*docs_broken.py, line 13.*Remedy: "),
    ],
)
def test_a_wrong_answer_ends_the_run_with_its_name(folder: Path, name: str, words: str) -> None:
    source = build(f"docs_broken:{name}", folder)
    with pytest.raises(ConfigError, match=f"curriculum.source = 'docs_broken:{name}': {words}"):
        source.next(3)


def test_a_source_may_choose_what_replaces_a_group_and_one_that_does_not_gives_its_next_prompts(folder: Path) -> None:
    source = build("docs_example:newest", folder)
    assert [p.prompt_id for p in source.replace(PROMPTS[:2])] == ["p3", "p2"]
    assert [p.prompt_id for p in build("docs_broken:replaces", folder).replace(PROMPTS[:2])] == ["p0", "p1"]
    with pytest.raises(ConfigError, match=r"nothing': replace\(2 prompts\) gave 0 prompts. Remedy: return a list of 2"):
        build("docs_broken:nothing", folder).replace(PROMPTS[:2])


@pytest.mark.timeout(120, method="thread")  # by signal, it would hold the clock that the call is given up by
def test_a_call_that_does_not_end_is_given_up(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"TimeoutError: it takes longer than 0.2 s .*docs_broken.py, line 29"):
        build("docs_broken:hangs", folder, limit_s=0.2)


def test_it_has_a_list_of_its_own(folder: Path) -> None:
    assert build("docs_broken:empties", folder).next(4) == PROMPTS


def test_a_source_of_ones_own_is_in_the_place_of_phases() -> None:
    base = {"model": {"path": "m"}, "eval": {"num_prompts": 0}}
    for others in ({"phases": [{"name": "a"}]}, {"task_balance": "equal"}, {"retrospection": {"mode": "weighted"}}):
        with pytest.raises(
            ValueError, match=r"curriculum.source \('mine:newest'\) with .*Remedy: leave one of them out"
        ):
            Config.model_validate(base | {"curriculum": {"source": "mine:newest", **others}})
    with pytest.raises(ValueError, match=r"'mine.py' is no function. Remedy"):
        Config.model_validate(base | {"curriculum": {"source": "mine.py"}})
