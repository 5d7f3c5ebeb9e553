"""A user's own loss and metric. Shape legend: N counted tokens of one micro-batch on this rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hybridflow.algorithms.objective import TermValue, TokenBatch
from hybridflow.algorithms.own.columns import give_tokens, offered_of_tokens, token_columns
from hybridflow.algorithms.own.function import OwnFunction, find_own
from hybridflow.algorithms.reductions import Reduction

METRIC_PREFIX = "own/"


@dataclass(frozen=True)
class _OnTokens:
    key: ClassVar[str]
    call: str
    """"module:function"."""
    module_folders: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    function: OwnFunction = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = find_own(self.key, self.call, offered_of_tokens(), self.parameters, self.module_folders)
        object.__setattr__(self, "function", found)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names among its parameters."""
        known = token_columns()
        return tuple(name for name in self.function.takes if name in known)

    def _read(self, values: object, tokens: TokenBatch) -> Tensor:
        """The result, if it is one number per token. Raises ConfigError where it is not."""
        wanted = f"a tensor of shape [N], one number per token, as logprobs: {_describe(tokens.logprobs_N)}"
        if not isinstance(values, Tensor):
            self.function.refuse(f"it returned {_name(values)}", wanted)
        if values.shape != tokens.logprobs_N.shape:
            self.function.refuse(f"it returned {_describe(values)} for {tokens.logprobs_N.numel()} tokens", wanted)
        return values


@dataclass(frozen=True)
class OwnLoss(_OnTokens):
    """A function that gives a loss per token, in the dtype of the log-probabilities and with their graph.

    `function.of_sequences = True` says that each token gets the loss of its whole sequence.
    """

    key: ClassVar = "algorithm.loss"
    metrics: ClassVar[Mapping[str, Reduction]] = {}

    @property
    def of_sequences(self) -> bool:
        return bool(getattr(self.function.function, "of_sequences", False))

    def __call__(self, tokens: TokenBatch) -> TermValue:
        loss_N = self._read(self.function(give_tokens(tokens)), tokens)
        if loss_N.dtype != tokens.logprobs_N.dtype:
            self.function.refuse(
                f"it returned {_describe(loss_N)}", f"numbers of the dtype of logprobs ({tokens.logprobs_N.dtype})"
            )
        return TermValue(loss_N)


@dataclass(frozen=True)
class OwnMetric(_OnTokens):
    """A function that gives a value per token; the mean over all tokens is logged as `own/<function>`."""

    key: ClassVar = "algorithm.metrics"
    first_pass_only: ClassVar = False

    @property
    def name(self) -> str:
        return METRIC_PREFIX + self.call.rpartition(":")[2]

    @property
    def metrics(self) -> Mapping[str, Reduction]:
        return {self.name: Reduction("mean")}

    def __call__(self, tokens: TokenBatch) -> Mapping[str, Tensor]:
        detached = dataclasses.replace(tokens, logprobs_N=tokens.logprobs_N.detach())
        with torch.no_grad():
            values = self._read(self.function(give_tokens(detached)), tokens)
        if values.is_complex():
            self.function.refuse(f"it returned {_describe(values)}", "real numbers, or True and False")
        return {self.name: values.to(tokens.logprobs_N.dtype)}


def _describe(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {list(values.shape)}"


def _name(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
