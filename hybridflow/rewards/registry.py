"""Chooses the verifier of a request, in tables read from the top.

| where                         | part of data_source, or ability       | verifier                        |
|-------------------------------|---------------------------------------|---------------------------------|
| config, `[reward.rules.verifiers]` | the key                               | a name, or "module:function"    |
| entry points of installed     | the name of the entry point, in the   | what it loads                   |
| packages                      | group `hybridflow.verifiers`          |                                 |
| built in                      | long_toc_choices, doc-mc              | multiple_choice                 |
|                               | docmath, doc-math                     | docmath                         |
|                               | synth_                                | docqa_exact                     |
|                               | anything                              | docqa                           |

Generated rows (`synth_`) are judged by equality: their answers are drawn from lists that are known word for word, and a
wrong one may hold the right one ("High Court of Oslo" for "Oslo").

Source: the dispatch of QwenLong-L1 by substring of data_source (recipe section 4); `ability` is added so that other
data sets need no special name. `compat = "qwenlong_l1"` puts the released rules in place of the built-in ones.

A verifier of one's own is a pure function of (text of the completion, ground truth as stored). It gives a Verdict, or a
number from 0 to 1; what it raises makes the verdict Unknown where it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points

from hybridflow.config.reward_sections import THINKING_TAGS, RulesSection
from hybridflow.errors import ConfigError
from hybridflow.rewards import qwenlong_l1
from hybridflow.rewards.docmath import verify_docmath
from hybridflow.rewards.docqa import verify_docqa, verify_docqa_exact
from hybridflow.rewards.multiple_choice import verify_multiple_choice
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

Verifier = Callable[[str, str], Verdict]
"""(text of the completion, ground truth as stored) -> verdict."""

ENTRY_POINT_GROUP = "hybridflow.verifiers"
_STRICT: dict[str, Callable[..., Verdict]] = {
    "docqa": verify_docqa,
    "docqa_exact": verify_docqa_exact,
    "docmath": verify_docmath,
    "multiple_choice": verify_multiple_choice,
}
_QWENLONG_L1: dict[str, Verifier] = {
    "docqa": qwenlong_l1.verify_docqa,
    "docqa_exact": qwenlong_l1.verify_docqa,
    "docmath": qwenlong_l1.verify_docmath,
    "multiple_choice": qwenlong_l1.verify_multiple_choice,
}
_BUILT_IN = {"none": _STRICT, "qwenlong_l1": _QWENLONG_L1}
_TABLE = (
    ("long_toc_choices", "multiple_choice"),
    ("doc-mc", "multiple_choice"),
    ("docmath", "docmath"),
    ("doc-math", "docmath"),
    ("synth_", "docqa_exact"),
)
_DEFAULT = "docqa"


class Registry:
    """The verifiers of a run.

    Args:
        section: `[reward.rules]` of the configuration.

    Raises:
        ConfigError: a verifier that the section names cannot be found or called, or an installed package offers one
            under the name of a built-in one.
    """

    def __init__(self, section: RulesSection) -> None:
        built_in = _build(section)
        offered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
        if taken := sorted(offered.keys() & built_in.keys()):
            raise ConfigError(
                f"the package of {offered[taken[0]].value!r} offers a verifier {taken[0]!r} (entry point group "
                f"{ENTRY_POINT_GROUP}), which is the name of a built-in one. Remedy: rename or remove it"
            )
        named = [(key, _find(key, name, built_in, offered)) for key, name in section.verifiers.items()]
        named += [(name, _load(f"entry point {name}", point)) for name, point in offered.items()]
        self._table = [*named, *((key, built_in[name]) for key, name in _TABLE)]
        self._default = built_in[_DEFAULT]

    def choose(self, data_source: str, ability: str) -> Verifier:
        """The first row that fits: its key is the ability, or stands in the data_source; docqa where none does."""
        for key, verifier in self._table:
            if key == ability or key in data_source:
                return verifier
        return self._default

    def is_judged(self, data_source: str, ability: str) -> bool:
        """Whether a judge may be asked after the verifier of such rows: after any but a choice among letters."""
        chosen = self.choose(data_source, ability)
        return chosen not in (verify_multiple_choice, qwenlong_l1.verify_multiple_choice)

    def verify(self, request: ScoreRequest) -> Verdict:
        """The verdict by rule on one completion: Scored, or Unknown where the gold cannot be compared with."""
        return self.choose(request.data_source, request.ability)(request.text, request.ground_truth)


@cache
def _default_registry() -> Registry:
    return Registry(RulesSection())


def choose_verifier(data_source: str, ability: str) -> Verifier:
    """What a run without `[reward.rules]` chooses."""
    return _default_registry().choose(data_source, ability)


def verify(request: ScoreRequest) -> Verdict:
    """What a run without `[reward.rules]` says."""
    return _default_registry().verify(request)


def _build(section: RulesSection) -> dict[str, Verifier]:
    """The built-in verifiers; those of QwenLong-L1 know `</think>` alone."""
    if section.compat != "none":
        return _BUILT_IN[section.compat]
    if section.thinking_tags == THINKING_TAGS:
        return _STRICT
    return {name: partial(verifier, thinking_tags=section.thinking_tags) for name, verifier in _STRICT.items()}


def _find(key: str, name: str, built_in: dict[str, Verifier], offered: dict[str, EntryPoint]) -> Verifier:
    where = f"reward.rules.verifiers.{key} = {name!r}"
    if name in built_in:
        return built_in[name]
    if name in offered:
        return _load(where, offered[name])
    if ":" not in name:
        known = ", ".join([*built_in, *offered])
        raise ConfigError(f'{where}: no verifier has this name. Remedy: use one of {known}, or "module:function"')
    return _load(where, EntryPoint(name, name, ENTRY_POINT_GROUP))


def _load(where: str, point: EntryPoint) -> Verifier:
    try:
        function = point.load()
    except Exception as error:  # a module of someone else may raise anything while it is imported
        raise ConfigError(
            f"{where}: {point.value!r} does not load: {type(error).__name__}: {error}. Remedy: name a module that can "
            f"be imported on every node, and a function in it"
        ) from error
    if not callable(function):
        raise ConfigError(f"{where}: {point.value!r} is a {type(function).__name__}. Remedy: name a function")
    return _checked(point.value, function)


def _checked(name: str, function: Callable[[str, str], object]) -> Verifier:
    """`function`, with a plain number made a verdict, and anything that is none made Unknown."""

    def verify(text: str, ground_truth: str) -> Verdict:
        result = function(text, ground_truth)
        value = result.value if isinstance(result, Scored) else result
        if isinstance(value, Unknown):
            return value
        if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
            return Unknown(
                why=f"the verifier {name} gave {result!r:.200}, which is no verdict and no number from 0 to 1"
            )
        if isinstance(result, Scored):
            return result
        return Scored(value=float(value), rule=name, extracted="", why="as the verifier says")

    return verify
