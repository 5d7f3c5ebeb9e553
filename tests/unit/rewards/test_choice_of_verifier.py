"""Which verifier judges a row: `[reward.rules]` of the configuration, entry points of packages, the built-in table."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hybridflow.config.load import load_config
from hybridflow.config.reward_sections import RulesSection
from hybridflow.config.section import Section
from hybridflow.errors import ConfigError
from hybridflow.rewards.registry import ENTRY_POINT_GROUP, Registry
from hybridflow.rewards.rules.docmath import verify_docmath
from hybridflow.rewards.rules.docqa import verify_docqa, verify_docqa_exact
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

OWN_MODULE = "own_verifiers"


class Parent(Section):
    rules: RulesSection = RulesSection()


class Root(Section):
    reward: Parent = Parent()


def give_half(text: str, ground_truth: str) -> float:
    return 0.5


def give_verdict(text: str, ground_truth: str) -> Verdict:
    return Scored(value=1.0, rule="own", extracted=text, why=ground_truth)


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of a user's own that can be imported."""
    module = ModuleType(OWN_MODULE)
    for function in (give_half, give_verdict):
        setattr(module, function.__name__, function)
    for name, value in (("too_much", 1.5), ("not_a_number", float("nan")), ("text", "yes"), ("nothing", None)):
        setattr(module, name, lambda text, ground_truth, value=value: value)
    module.constant = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, OWN_MODULE, module)
    return module


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a package with these lines under the entry point group, as pip would."""

    def write(lines: str) -> None:
        info = tmp_path / "own_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{lines}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    return write


def ask(registry: Registry, data_source: str = "s", ability: str = "doc-qa") -> Verdict:
    return registry.verify(
        ScoreRequest(completion_id="c", data_source=data_source, ability=ability, ground_truth="yen", text="yen")
    )


def refuse(**section: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Registry(RulesSection.model_validate(section))
    return str(caught.value)


@pytest.mark.parametrize(
    ("verifiers", "data_source", "ability", "expected"),
    [
        ({}, "synth_easy", "doc-qa", verify_docqa_exact),
        ({}, "synth_lookup", "doc-qa", verify_docqa_exact),
        ({}, "docmath_synth", "doc-math", verify_docmath),
        ({}, "musique_0_20000", "doc-qa", verify_docqa),
        ({"doc-qa": "docqa_exact"}, "musique_0_20000", "doc-qa", verify_docqa_exact),
        ({"musique": "docmath"}, "musique_0_20000", "doc-qa", verify_docmath),
        ({"musique": "docmath"}, "docmath_0_20000", "doc-math", verify_docmath),
        ({"docmath": "docqa"}, "docmath_0_20000", "doc-math", verify_docqa),
        ({"a": "docmath", "ab": "docqa"}, "abc", "doc-qa", verify_docmath),
    ],
)
def test_the_first_row_that_fits_wins_and_the_configuration_comes_first(
    verifiers: dict[str, str], data_source: str, ability: str, expected: object
) -> None:
    assert Registry(RulesSection(verifiers=verifiers)).choose(data_source, ability) is expected


def test_a_function_of_the_users_own_is_found_by_module_and_name() -> None:
    registry = Registry(RulesSection(verifiers={"doc-qa": f"{OWN_MODULE}:give_verdict"}))
    assert ask(registry) == Scored(value=1.0, rule="own", extracted="yen", why="yen")


def test_a_number_from_a_verifier_becomes_a_verdict_under_its_name() -> None:
    verdict = ask(Registry(RulesSection(verifiers={"doc-qa": f"{OWN_MODULE}:give_half"})))
    assert isinstance(verdict, Scored) and (verdict.value, verdict.rule) == (0.5, f"{OWN_MODULE}:give_half")


@pytest.mark.parametrize("name", ["too_much", "not_a_number", "text", "nothing"])
def test_what_is_no_verdict_is_unknown_and_not_zero(name: str) -> None:
    verdict = ask(Registry(RulesSection(verifiers={"doc-qa": f"{OWN_MODULE}:{name}"})))
    assert isinstance(verdict, Unknown) and f"{OWN_MODULE}:{name} gave" in verdict.why


def test_an_installed_package_offers_a_verifier_under_a_part_of_the_data_source(install: Callable[[str], None]) -> None:
    install(f"leases = {OWN_MODULE}:give_half")
    registry = Registry(RulesSection(verifiers={"deeds": "leases"}))
    values = [ask(registry, source) for source in ("leases_0_20000", "deeds", "other")]
    assert [verdict.value for verdict in values if isinstance(verdict, Scored)] == [0.5, 0.5, 0.0]


def test_an_installed_package_cannot_take_the_place_of_a_built_in_verifier(install: Callable[[str], None]) -> None:
    install(f"docqa = {OWN_MODULE}:give_half")
    message = refuse()
    assert f"'{OWN_MODULE}:give_half'" in message and "'docqa'" in message and "Remedy: rename" in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "docq",
            [
                "reward.rules.verifiers.doc-qa = 'docq'",
                "docqa, docqa_exact, docmath, multiple_choice",
                "module:function",
            ],
        ),
        ("no_such_module:f", ["reward.rules.verifiers.doc-qa", "ModuleNotFoundError", "imported on every node"]),
        (f"{OWN_MODULE}:no_such_function", ["AttributeError", "no_such_function", "Remedy"]),
        (f"{OWN_MODULE}:constant", ["is a int", "Remedy: name a function"]),
    ],
)
def test_a_verifier_that_is_not_there_is_named_with_a_remedy(name: str, words: list[str]) -> None:
    message = refuse(verifiers={"doc-qa": name})
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reward.rules.compat=qwenlong", ["reward.rules.compat", "did you mean 'qwenlong_l1'?"]),
        (
            "reward.rules.verifiers.doc-qa=a b",
            ["neither a name nor a function", 'remedy: give the name of a verifier, such as "docqa"'],
        ),
        ("reward.rules.verifiers={''='docqa'}", ["is empty", "remedy: name an ability"]),
        ("reward.rules.verifier=3", ["did you mean 'verifiers'?"]),
    ],
)
def test_a_wrong_section_is_refused_with_key_and_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [override], Root)
    assert [word for word in words if word not in str(caught.value)] == []


def test_compat_exchanges_the_built_in_rules_only() -> None:
    section = RulesSection(compat="qwenlong_l1", verifiers={"own": f"{OWN_MODULE}:give_half"})
    request = ScoreRequest(
        completion_id="c", data_source="s", ability="doc-qa", ground_truth="Paris", text="</think> the answer is the"
    )
    verdict = Registry(section).verify(request)
    assert isinstance(verdict, Scored) and (verdict.value, verdict.rule) == (1.0, "qwenlong_l1_docqa")
    own = ask(Registry(section), "own")
    assert isinstance(own, Scored) and own.value == 0.5
