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

`[[reward.functions]]` takes the place of this table with functions that judge every row (`several.py`). How a
verifier of one's own is called, and what it returns: `own_function.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any

import msgspec

from hybridflow.config.reward_sections import THINKING_TAGS, FunctionSection, RewardSection, RulesSection
from hybridflow.errors import ConfigError
from hybridflow.find_function import find_function
from hybridflow.rewards.own_function import OwnFunction
from hybridflow.rewards.rules import qwenlong_l1
from hybridflow.rewards.rules.docmath import verify_docmath
from hybridflow.rewards.rules.docqa import verify_docqa, verify_docqa_exact
from hybridflow.rewards.rules.multiple_choice import verify_multiple_choice
from hybridflow.rewards.several import RULE_CALL, Share, best_of, mean_of
from hybridflow.types import ScoreRequest, Unknown, Verdict

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
        functions: `[[reward.functions]]`: verifiers of every row, in place of the rules.
        folders: `reward.module_folders`, where "module:function" is looked for first.

    Raises:
        ConfigError: a verifier that the section names cannot be found or called, or an installed package offers one
            under the name of a built-in one.
    """

    def __init__(
        self, section: RulesSection, functions: Sequence[FunctionSection] = (), folders: Sequence[str] = ()
    ) -> None:
        self._folders = folders
        self._tags = section.thinking_tags
        self._own: list[OwnFunction] = []
        built_in = _build(section)
        offered = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
        if taken := sorted(offered.keys() & built_in.keys()):
            raise ConfigError(
                f"the package of {offered[taken[0]].value!r} offers a verifier {taken[0]!r} (entry point group "
                f"{ENTRY_POINT_GROUP}), which is the name of a built-in one. Remedy: rename or remove it"
            )
        self._built_in, self._offered = built_in, offered
        named = [(key, self._find(f"reward.rules.verifiers.{key}", name)) for key, name in section.verifiers.items()]
        named += [(name, self._load(f"entry point {name}", point.value)) for name, point in offered.items()]
        self._table = [*named, *((key, built_in[name]) for key, name in _TABLE)]
        self._default = built_in[_DEFAULT]
        self._functions = [self._find_function(number, function) for number, function in enumerate(functions)]
        self._shares = [Share(each.label, each.weight, each.call == RULE_CALL) for each in functions]

    def choose(self, data_source: str, ability: str) -> Verifier | OwnFunction:
        """The first row that fits: its key is the ability, or stands in the data_source; docqa where none does."""
        for key, verifier in self._table:
            if key == ability or key in data_source:
                return verifier
        return self._default

    def is_judged(self, data_source: str, ability: str) -> bool:
        """Whether a judge may be asked after the verifier of such rows: after any but a choice among letters."""
        if self._shares and not any(share.is_rule for share in self._shares):
            return True
        chosen = self.choose(data_source, ability)
        chosen = chosen.func if isinstance(chosen, partial) else chosen
        return chosen not in (verify_multiple_choice, qwenlong_l1.verify_multiple_choice)

    def is_own(self, data_source: str, ability: str) -> bool:
        """Whether code of the user's own is called for such rows, which may take long and do anything."""
        has_functions = any(not share.is_rule for share in self._shares)
        return has_functions or isinstance(self.choose(data_source, ability), OwnFunction)

    def asks_rule(self, data_source: str, ability: str) -> bool:
        """Whether a built-in rule is asked about such rows."""
        is_asked = not self._shares or any(share.is_rule for share in self._shares)
        return is_asked and not isinstance(self.choose(data_source, ability), OwnFunction)

    def name_of(self, data_source: str, ability: str) -> str:
        """The verifiers of such rows, for a reader."""
        chosen = self.choose(data_source, ability)
        if isinstance(chosen, OwnFunction):
            name = f"the verifier {chosen.name}"
        else:
            name = f"the rule {next(name for name, verifier in self._built_in.items() if verifier is chosen)}"
        if not self._shares:
            return name
        names = [name if share.is_rule else share.name for share in self._shares]
        return f"the mean of {' and '.join(names)}" if len(names) > 1 else f"the verifier {names[0]}"

    def verify(self, request: ScoreRequest) -> Verdict:
        """The verdict on one completion: Scored, or Unknown where the gold cannot be compared with."""
        if not self._functions:
            return self.verify_by_rule(request)
        return mean_of(self._shares, (function(request) for function in self._functions))

    def verify_by_rule(self, request: ScoreRequest) -> Verdict:
        """The verdict of the verifier that data source and ability choose."""
        return _call(self.choose(request.data_source, request.ability), request)

    def find_gold_problem(self, data_source: str, ability: str, golds: Sequence[str]) -> str:
        """Why no answer to such a row could get a verdict, as a gold cannot be compared with; "" where each can.

        Functions of a user's own, which may take long and do anything, are not asked.
        """
        verifier = self.choose(data_source, ability)
        if isinstance(verifier, OwnFunction) or not self.asks_rule(data_source, ability):
            return ""
        verdicts = (verifier("", gold) for gold in golds)
        return next((verdict.why for verdict in verdicts if isinstance(verdict, Unknown)), "")

    @property
    def row_arguments(self) -> frozenset[str]:
        """Parts of a row that its verifiers take beside the rest: `prompt`, `extra_info`."""
        return frozenset[str]().union(*(own.row_arguments for own in self._own))

    def _find_function(self, number: int, section: FunctionSection) -> Callable[[ScoreRequest], Verdict]:
        if section.call == RULE_CALL:
            return self.verify_by_rule
        return partial(_call, self._find(f"reward.functions.{number}.call", section.call))

    def _find(self, key: str, name: str) -> Verifier | OwnFunction:
        where = f"{key} = {name!r}"
        if name in self._built_in:
            return self._built_in[name]
        if name in self._offered:
            return self._load(where, self._offered[name].value)
        if ":" not in name:
            known = ", ".join([*self._built_in, *self._offered])
            module, _, function = name.rpartition(".")
            hint = f'write "{module}:{function}", or ' if module else ""
            raise ConfigError(
                f'{where}: no verifier has this name. Remedy: {hint}use one of {known}, or "module:function"'
            )
        return self._load(where, name)

    def _load(self, where: str, name: str) -> OwnFunction:
        own = OwnFunction(name, find_function(where, name, self._folders), where, self._tags)
        self._own.append(own)
        return own


def _call(verifier: Verifier | OwnFunction, request: ScoreRequest) -> Verdict:
    each = (msgspec.structs.replace(request, ground_truth=gold, alternatives=[]) for gold in request.golds)
    return best_of(_call_once(verifier, one) for one in each)


def _call_once(verifier: Verifier | OwnFunction, request: ScoreRequest) -> Verdict:
    if isinstance(verifier, OwnFunction):
        return verifier.verify(request)
    return verifier(request.text, request.ground_truth)


def build_registry(section: RewardSection) -> Registry:
    """The verifiers that `[reward]` names. ConfigError as `Registry`."""
    return Registry(section.rules, section.functions, section.module_folders)


def build_verify(**keys: Any) -> Callable[[ScoreRequest], Verdict]:
    """`Registry.verify` of the verifiers that these keys of `[reward]` name, as a scoring process is told them."""
    return build_registry(RewardSection.model_validate(keys)).verify


def _build(section: RulesSection) -> dict[str, Verifier]:
    """The built-in verifiers; those of QwenLong-L1 know `</think>` alone."""
    if section.compat != "none":
        return _BUILT_IN[section.compat]
    if section.thinking_tags == THINKING_TAGS:
        return _STRICT
    return {name: partial(verifier, thinking_tags=section.thinking_tags) for name, verifier in _STRICT.items()}
