"""Tables of what an algorithm can be made of: a name, and where the class is. One line makes a part known."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

from hybridflow.errors import ConfigError

P = TypeVar("P")


class Registry(Generic[P]):
    """Parts of one kind by name. An entry is a frozen dataclass, or "module:Class", imported when it is first built.

    The fields of the class are the parameters that it takes, by the names of their configuration keys. Where there is
    an entry `own`, a function of the user's own, "module:function", has the place of a name; it becomes the field
    `call` of that entry.
    """

    def __init__(self, kind: str, entries: Mapping[str, str | type], own: str = "") -> None:
        self._kind = kind
        self._entries = dict(entries)
        self._own = own

    @property
    def names(self) -> list[str]:
        return sorted(self._entries)

    def add(self, name: str, entry: str | type) -> None:
        """Makes a part known to this process. Raises ConfigError for a name that is taken."""
        if name in self._entries:
            raise ConfigError(f"{self._kind} {name!r} is registered already. Remedy: choose another name")
        self._entries[name] = entry

    def find(self, name: str) -> type:
        """The class of a part. Raises ConfigError for a name that is not registered."""
        if self._own and ":" in name:
            return _find(self._own)
        if name not in self._entries:
            own = ', or "module:function"' if self._own else ""
            raise ConfigError(f"no {self._kind} {name!r}. Remedy: take one of {', '.join(self.names)}{own}")
        return _find(self._entries[name])

    def build(self, name: str, parameters: Mapping[str, Any]) -> P:
        """The part `name`, made with those of `parameters` that it takes.

        Raises ConfigError for a name that is not registered, for a parameter that is missing, and for a function of the
        user's own that does not load or cannot be called.
        """
        part = self.find(name)
        parameters = {**parameters, "call": name}
        fields = [field for field in dataclasses.fields(part) if field.init]
        missing = [field.name for field in fields if field.name not in parameters and not _has_default(field)]
        if missing:
            raise ConfigError(f"{self._kind} {name!r} needs {', '.join(missing)}. Remedy: set it in the configuration")
        return part(**{field.name: parameters[field.name] for field in fields if field.name in parameters})

    def build_all(self, names: Sequence[str], parameters: Mapping[str, Any]) -> tuple[P, ...]:
        return tuple(self.build(name, parameters) for name in names)


def _find(entry: str | type) -> Any:
    if isinstance(entry, type):
        return entry
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


FILTERS: Registry[Any] = Registry(
    "filter",
    {
        "too_few_known": "hybridflow.algorithms.filters:TooFewKnown",
        "known_share": "hybridflow.algorithms.filters:KnownShare",
        "same_reward": "hybridflow.algorithms.filters:SameReward",
    },
    own="hybridflow.algorithms.own.on_groups:OwnFilter",
)
ADVANTAGES: Registry[Any] = Registry(
    "advantage",
    {
        "group_relative": "hybridflow.algorithms.advantages:GroupRelative",
        "dr_grpo": "hybridflow.algorithms.advantages:DrGRPO",
        "rloo": "hybridflow.algorithms.advantages:LeaveOneOut",
        "reinforce_pp": "hybridflow.algorithms.advantages:BatchNormalised",
        "task_std": "hybridflow.algorithms.advantages:TaskNormalised",
    },
    own="hybridflow.algorithms.own.on_groups:OwnAdvantage",
)
MASKS: Registry[Any] = Registry(
    "mask",
    {
        "fresh_tokens": "hybridflow.algorithms.masks:FreshTokens",
    },
)
TERMS: Registry[Any] = Registry(
    "term of the loss",
    {
        "clip": "hybridflow.algorithms.losses:ClippedSurrogate",
        "dual_clip": "hybridflow.algorithms.losses:DualClip",
        "gspo": "hybridflow.algorithms.gspo:SequenceRatio",
        "cispo": "hybridflow.algorithms.cispo:ClippedWeight",
        "sapo": "hybridflow.algorithms.sapo:SoftGate",
        "nll": "hybridflow.algorithms.losses:NegativeLogLikelihood",
        "entropy": "hybridflow.algorithms.entropy_bonus:EntropyBonus",
        "reference_kl": "hybridflow.algorithms.reference_kl:ReferenceKL",
    },
    own="hybridflow.algorithms.own.on_tokens:OwnLoss",
)
CORRECTIONS: Registry[Any] = Registry(
    "correction",
    {
        "tis": "hybridflow.algorithms.corrections:TruncatedImportanceSampling",
        "icepop": "hybridflow.algorithms.corrections:IcePop",
        "geometric": "hybridflow.algorithms.corrections:GeometricMask",
        "outlier": "hybridflow.algorithms.corrections:OutlierMask",
        "off_policy": "hybridflow.algorithms.corrections:OffPolicyMask",
    },
)
AGGREGATIONS: Registry[Any] = Registry(
    "aggregation",
    {
        "token_mean": "hybridflow.algorithms.aggregations:TokenMean",
        "sequence_mean": "hybridflow.algorithms.aggregations:SequenceMean",
        "constant": "hybridflow.algorithms.aggregations:ConstantNormaliser",
    },
)
MEASURES: Registry[Any] = Registry(
    "measure",
    {
        "entropy": "hybridflow.algorithms.measures:Entropy",
        "policy_ratio": "hybridflow.algorithms.measures:PolicyRatio",
        "engine_mismatch": "hybridflow.algorithms.measures:EngineMismatch",
        "reference_distance": "hybridflow.algorithms.reference_kl:ReferenceDistance",
    },
    own="hybridflow.algorithms.own.on_tokens:OwnMetric",
)
