"""The suite for a part by its name: a registered one, or "module:function"."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch

from hybridflow.algorithms.invariances.of_groups import check_advantage, check_filter
from hybridflow.algorithms.invariances.of_rows import check_mask
from hybridflow.algorithms.invariances.of_sums import check_sums
from hybridflow.algorithms.invariances.of_tokens import as_loss, as_metric, as_weights, check_tokens
from hybridflow.algorithms.invariances.outcome import Outcome
from hybridflow.algorithms.invariances.tokens import build_micro_batch, make_rows, whole
from hybridflow.algorithms.own.columns import give_tokens, offered_of_tokens
from hybridflow.algorithms.own.function import find_own
from hybridflow.algorithms.own.on_groups import OwnAdvantage, OwnFilter
from hybridflow.algorithms.own.on_tokens import OwnLoss
from hybridflow.algorithms.registry import (
    ADVANTAGES,
    AGGREGATIONS,
    CORRECTIONS,
    FILTERS,
    MASKS,
    MEASURES,
    TERMS,
    Registry,
)
from hybridflow.errors import ConfigError

Kind = Literal["loss", "advantage", "filter", "metrics", "aggregation", "correction", "mask"]
REGISTRIES: dict[Kind, Registry[Any]] = {
    "loss": TERMS,
    "advantage": ADVANTAGES,
    "filter": FILTERS,
    "metrics": MEASURES,
    "aggregation": AGGREGATIONS,
    "mask": MASKS,
    "correction": CORRECTIONS,
}
_SUITES: dict[Kind, Callable[[Any], Iterator[Outcome]]] = {
    "loss": lambda term: check_tokens(as_loss(term)),
    "metrics": lambda measure: check_tokens(as_metric(measure)),
    "aggregation": check_sums,
    "correction": lambda correction: check_tokens(as_weights(correction)),
    "advantage": check_advantage,
    "filter": check_filter,
    "mask": check_mask,
}
_MADE_UP: dict[str, Any] = {
    **{"top_p": 1.0, "min_known_fraction": 0.5, "normaliser_tokens": 64, "kl_estimator": "unbiased"},
    **{"tis_cap": 1.2, "icepop_low": 0.8, "icepop_high": 1.2, "geometric_low": 0.95, "geometric_high": 1.1},
    **{"outlier_low": 0.7, "outlier_high": 1.3, "off_policy_delta": 0.05, "off_policy_against": "engine"},
}
"""Parameters that a run has from other sections. Each bound takes some of the tokens that are made up, not all."""


class Guess(NamedTuple):
    """The kind of a part, and why it is taken for one."""

    kind: Kind
    why: str


def check_part(kind: Kind, name: str, parameters: Mapping[str, Any]) -> Iterator[Outcome]:
    """Outcomes of all checks of a part, as they come.

    Args:
        kind: Of the part.
        name: As in `registry.py`, or "module:function".
        parameters: By the names of configuration keys; a number that none sets is made up.

    Raises:
        ConfigError: there is no such part, or the function does not load or cannot be called.
    """
    return _SUITES[kind](REGISTRIES[kind].build(name, complete(kind, name, parameters)))


def settings_of(kind: Kind, name: str, parameters: Mapping[str, Any]) -> str:
    """The parameters that a part is tried with, for a reader, and those of functions that it does not take. ConfigError
    as `check_part`."""
    part = REGISTRIES[kind].build(name, complete(kind, name, parameters))
    idle: list[str] = []
    if ":" in name:
        found = dict(part.function.settings)
        idle = [f"it does not take {key}" for key in parameters.get("parameters", {}) if key not in found]
    else:
        found = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    return ", ".join([*(f"{key} = {value!r}" for key, value in found.items()), *idle])


def complete(kind: Kind, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, with a value for each that the part needs and none sets."""
    found = {**_MADE_UP, **{key: value for key, value in parameters.items() if value is not None}}
    part = REGISTRIES[kind].find(name)
    hints = get_type_hints(part)
    for field in dataclasses.fields(part):
        if field.name.endswith("coefficient") and not found.get(field.name):
            found[field.name] = 0.5  # at 0 a run leaves the part out
        needs = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needs and field.init and field.name not in found and field.name != "call":
            found[field.name] = _make_up(hints[field.name])
    return found


def _make_up(hint: Any) -> Any:
    """A value for a number, or the first of several choices."""
    if get_origin(hint) is Literal:
        return get_args(hint)[0]
    return 0.5 if hint is float else hint(2)


def guess_kind(name: str, parameters: Mapping[str, Any]) -> Guess:
    """The kind of a registered part by its name, of a function by what it takes and gives.

    Raises ConfigError where there is no such part, or the function does not load or takes what nobody gives.
    """
    if ":" not in name:
        kinds: list[Kind] = [kind for kind, registry in REGISTRIES.items() if name in registry.names]
        if kinds:
            others = "".join(f"; --kind {kind}: another one of this name" for kind in kinds[1:])
            return Guess(kinds[0], f"registered{others}")
        known = {each for registry in REGISTRIES.values() for each in registry.names}
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            f"no part of an algorithm is named {name!r}. Remedy: {f'did you mean {near[0]!r}? ' if near else ''}give "
            f'"module:function", or one of {", ".join(sorted(known))}'
        )
    of_groups = {"advantage": OwnAdvantage.offered, "filter": OwnFilter.offered}
    offered = tuple(dict.fromkeys((*of_groups["advantage"], *of_groups["filter"], *offered_of_tokens())))
    takes = _takes(name, offered, parameters)
    if "group" in takes:
        return Guess("filter", "it takes group")
    if "groups" in takes or "rewards" in takes:
        return Guess("advantage", f"it takes {', '.join(sorted({'groups', 'rewards'} & takes))}")
    loss = OwnLoss(name, parameters.get("module_folders", ()), parameters.get("parameters", {}))
    tokens = build_micro_batch([whole(row) for row in make_rows(loss.columns)], torch.float64)
    try:
        found = loss.function(give_tokens(tokens))
    except ConfigError:  # told by the first check
        return Guess("loss", "it takes columns of tokens")
    if isinstance(found, torch.Tensor) and not found.requires_grad:
        why = "it takes columns of tokens, and its values have no gradient; --kind loss if it is to be one"
        return Guess("metrics", why)
    return Guess("loss", "it takes columns of tokens")


def _takes(name: str, offered: tuple[str, ...], parameters: Mapping[str, Any]) -> set[str]:
    folders = parameters.get("module_folders", ())
    return set(find_own("check-algorithm", name, offered, parameters.get("parameters", {}), folders).takes)
