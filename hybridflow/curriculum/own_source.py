"""A source of prompts of the user's own: `curriculum.source = "module:function"`.

    def source(prompts, seed):     # takes of prompts (all rows to train on, tokenised), seed and prompts_per_step
        return MySource(prompts)   # with the methods of `curriculum.source.PromptSource`

What it gives is looked at each time: a source that hands out too few prompts, or others than those of the run, would
end in a run that trains on something else without a word. One that ends the process, or never answers, is an error too.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from hybridflow.curriculum.source import PromptSource
from hybridflow.errors import ConfigError, HybridFlowError
from hybridflow.find_function import find_function, limited_in_time
from hybridflow.types import Group, Prompt

METHODS = ("next", "observe", "state_dict", "load_state_dict")
OFFERED = ("prompts", "seed", "prompts_per_step")
"""Names of what the function may take."""
CALL_S = 300.0
"""Longest call: who has an index to build or a server to ask needs minutes; longer is to hang, and a run would wait."""


def find_source(call: str, folders: Sequence[str]) -> Callable[..., object]:
    """The function that makes the source.

    Raises ConfigError: it does not import, is none, or takes something that nobody gives.
    """
    where = f"curriculum.source = {call!r}"
    function = find_function(where, call, folders)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: its parameters cannot be read ({error}). Remedy: name a function (def)") from error
    for one in parameters:
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD, one.POSITIONAL_ONLY) or (
            one.name not in OFFERED and one.default is one.empty
        ):
            raise ConfigError(
                f"{where}: it takes {str(one)!r}, which nobody gives. Remedy: take of {', '.join(OFFERED)}, by name"
            )
    return function


def build_own_source(
    call: str, folders: Sequence[str], given: Mapping[str, Any], limit_s: float = CALL_S
) -> PromptSource:
    """The source that the function makes of `given`, a value for each of OFFERED; ConfigError where it is none.

    It gets a list of its own of the prompts, which it may sort or empty. `limit_s`: of each of its calls.
    """
    function = find_source(call, folders)
    offered = {**given, "prompts": list(given["prompts"])}
    taken = {name: value for name, value in offered.items() if name in inspect.signature(function).parameters}
    return OwnSource(call, function, taken, given["prompts"], limit_s)


class OwnSource:
    """A user's source, each answer of which is checked; ConfigError, with file and line, for what it raises."""

    def __init__(
        self,
        call: str,
        function: Callable[..., object],
        given: Mapping[str, Any],
        prompts: Sequence[Prompt],
        limit_s: float = CALL_S,
    ) -> None:
        self._limit_s = limit_s
        self.name = f"own {call}"
        self._where = f"curriculum.source = {call!r}"
        self._known = {prompt.prompt_id: prompt for prompt in prompts}
        self._source: Any = self._call("", function, **given)
        lacking = [name for name in METHODS if not callable(getattr(self._source, name, None))]
        if lacking:
            raise ConfigError(
                f"{self._where}: it returned a {type(self._source).__name__}, which has no {', '.join(lacking)}. "
                f"Remedy: return an object with the methods {', '.join(METHODS)}"
            )
        self.state_dict()

    def next(self, num_prompts: int) -> list[Prompt]:
        found = self._call("next", self._source.next, num_prompts)
        return self._check(f"next({num_prompts})", found, num_prompts)

    def replace(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Asks the source's own `replace`; of one that has none, its next prompts."""
        if not callable(getattr(self._source, "replace", None)):
            return self.next(len(prompts))
        found = self._call("replace", self._source.replace, list(prompts))
        return self._check(f"replace({len(prompts)} prompts)", found, len(prompts))

    def _check(self, call: str, found: Any, num_prompts: int) -> list[Prompt]:
        """The prompts that `call` gave; ConfigError where there are not so many, or others than the run's."""
        if not isinstance(found, list | tuple) or len(found) != num_prompts:
            came = f"{len(found)} prompts" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
            raise ConfigError(f"{self._where}: {call} gave {came}. Remedy: return a list of {num_prompts}")
        for prompt in found:
            if not isinstance(prompt, Prompt) or prompt is not self._known.get(prompt.prompt_id):
                shown = getattr(prompt, "prompt_id", type(prompt).__name__)
                raise ConfigError(
                    f"{self._where}: {call} gave {shown!r}, which is none of the run's prompts. Remedy: "
                    "hand out the prompts that the function is given, as they are"
                )
        return list(found)

    def observe(self, groups: Sequence[Group]) -> None:
        self._call("observe", self._source.observe, groups)

    def state_dict(self) -> dict[str, Any]:
        state = self._call("state_dict", self._source.state_dict)
        try:
            if isinstance(state, dict) and msgspec.json.decode(msgspec.json.encode(state)) == state:
                return state
            told = f"gave {str(state)[:60]!r}, which JSON does not give back as it was"
        except (TypeError, ValueError, OverflowError) as error:
            told = f"gave what no JSON can hold: {error}"
        raise ConfigError(
            f"{self._where}: state_dict() {told}. Remedy: return a dict of texts, numbers, lists and such dicts"
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._call("load_state_dict", self._source.load_state_dict, state)

    def _call(self, method: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            with limited_in_time(self._limit_s, f"{method}()" if method else "it"):
                return function(*arguments, **named)
        except (HybridFlowError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename not in _OUR_FILES]
            place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
            raised = f"{f'{method}()' if method else 'it'} raised {type(error).__name__}: {error}"
            raise ConfigError(f"{self._where}: {raised}{place}. Remedy: mend it") from error


_OUR_FILES = frozenset({__file__, find_function.__code__.co_filename})
