"""A verifier of a user's own: how it is called, what it may return, and where it failed.

It is called with keyword arguments, as far as it takes them:

| argument       | what it holds                                                                              |
|----------------|--------------------------------------------------------------------------------------------|
| `response`     | text of the completion, thinking included; verl's name `solution_str` is the same           |
| `answer`       | what stands behind the last "the answer is", `\\boxed{}` or their like; where there is none |
|                | of them, all of the response behind the thinking                                            |
| `ground_truth` | the gold answer as text; of several, each in turn, and the best result counts               |
| `prompt`       | the messages of the row, `[{"role", "content"}, ...]`                                      |
| `data_source`  | as the row has it                                                                          |
| `extra_info`   | the row's object, `{}` where it has none                                                   |

So verl's `compute_score(data_source, solution_str, ground_truth, extra_info=None)` is called as it is. A function whose
parameters have other names is called with (text of the completion, ground truth), by position.

It returns a number from 0 to 1, or a dict with `value` (verl: `score`), and where it likes `extracted` (verl: `pred`),
`why`, and named parts: other numbers, under keys of their own or in `parts`. A `Scored` or `Unknown` of
`hybridflow.types` is taken as it is. Anything else, and whatever it raises, makes the verdict Unknown with the reason.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import numbers
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from hybridflow.config.reward_sections import THINKING_TAGS
from hybridflow.errors import ConfigError
from hybridflow.rewards.extraction.extract import extract_answer
from hybridflow.rewards.text.thinking import Tags, after_thinking
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

ARGUMENTS = ("response", "answer", "ground_truth", "prompt", "data_source", "extra_info")
ROW_ARGUMENTS = frozenset({"prompt", "extra_info"})
"""Arguments that a request has only where somebody asks for them."""
_ALIASES = {"solution_str": "response"}
_RESULT_KEYS = frozenset({"value", "score", "extracted", "pred", "why", "parts"})
_MAX_CHARS = 2_000
"""Longest text that a function returns: verdicts are sent and stored."""
_MAX_NAME_CHARS = 100
_MAX_PARTS = 100
"""Each is a metric of its own."""
_GOLDS = ("gold", "gold_answer", "answer_gold", "expected", "label", "reference", "solution", "target", "truth")
"""Arguments that may stand beside `response` where they go by position."""
_BY_POSITION = ("response", "ground_truth")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class OwnFunction:
    """One function as a verifier.

    Args:
        name: How the user named it; the rule of its verdicts.
        function: What `find_function` found.
        where: Key and value of the configuration, for errors.
        thinking_tags: As in `thinking`.

    Raises:
        ConfigError: it needs an argument that nobody gives, or its result would have to be awaited.
    """

    def __init__(
        self, name: str, function: Callable[..., object], where: str, thinking_tags: Tags = THINKING_TAGS
    ) -> None:
        self.name = name
        self._tags = thinking_tags
        self._function = function
        self._file = _source_file(function)
        if kind := _find_other_kind(function):
            raise ConfigError(f"{where}: it is a {kind}. Remedy: name a plain function (def) that returns a number")
        self._by_position, self._by_keyword = _plan_call(function, where)

    @property
    def row_arguments(self) -> frozenset[str]:
        """`prompt` and `extra_info`, as far as it takes them."""
        taken = {*self._by_position, *self._by_keyword.values()}
        return ROW_ARGUMENTS & taken

    def verify(self, request: ScoreRequest) -> Verdict:
        """Its verdict on one completion."""
        answer = extract_answer(request.text, self._tags).text
        known = self._collect(request, answer or after_thinking(request.text, self._tags).strip())
        positional = [known[name] for name in self._by_position]
        named = {parameter: known[name] for parameter, name in self._by_keyword.items()}
        try:
            result = self._function(*positional, **named)
        except MemoryError:
            raise
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: it has no keyboard
            return Unknown(why=_clean(f"the verifier {self.name} raised {self._locate(error)}"), rule=self.name)
        return read_result(self.name, result, answer)

    def _collect(self, request: ScoreRequest, answer: str) -> dict[str, Any]:
        row = json.loads(request.row) if request.row else {}
        return {
            "response": request.text,
            "answer": answer,
            "ground_truth": request.ground_truth,
            "data_source": request.data_source,
            "prompt": row.get("prompt", []),
            "extra_info": row.get("extra_info") or {},
        }

    def _locate(self, error: BaseException) -> str:
        """Type and text of an error, and the line of the user's file in which it arose."""
        told = f"{type(error).__name__}: {traceback.TracebackException.from_exception(error)}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == self._file] or frames[1:]
        if not own:
            return told  # it does not take these arguments, or is written in C
        return f"{told} ({own[-1].filename}, line {own[-1].lineno}, in {own[-1].name})"


def read_result(name: str, result: object, answer: str) -> Verdict:
    """Reads what the function `name` returned, as a verdict; `answer` is what it is taken to have looked at."""
    if isinstance(result, Unknown):
        return result
    if isinstance(result, Scored):
        return result if _is_reward(result.value) else _refuse(name, result)
    if not isinstance(result, Mapping):
        if not _is_reward(result):
            return _refuse(name, result)
        return Scored(value=float(result), rule=name, extracted=answer, why="as the verifier says")  # type: ignore[arg-type]
    key = "value" if "value" in result else "score"
    if not _is_reward(result.get(key)):
        return _refuse(name, result)
    parts: dict[str, float] = {}
    for part, value in [*((k, v) for k, v in result.items() if k not in _RESULT_KEYS), *_named_parts(result)]:
        if isinstance(value, numbers.Real):
            parts[_clean(part)[:_MAX_NAME_CHARS]] = _to_float(value)
    if len(parts) > _MAX_PARTS:
        return Unknown(why=f"the verifier {name} gave {len(parts)} parts, where {_MAX_PARTS} may be", rule=name)
    if bad := [part for part, value in parts.items() if not math.isfinite(value)]:
        return Unknown(why=f"the verifier {name} gave {parts[bad[0]]} for its part {bad[0]!r}", rule=name)
    extracted = next((result[k] for k in ("extracted", "pred") if result.get(k) is not None), answer)
    why = result.get("why") or "as the verifier says"
    return Scored(value=float(result[key]), rule=name, extracted=_clean(extracted), why=_clean(why), parts=parts)


def _named_parts(result: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    parts = result.get("parts")
    return list(parts.items()) if isinstance(parts, Mapping) else []


def _is_reward(value: Any) -> bool:
    """A number from 0 to 1; numpy's count, True does not: it is most often a comparison by mistake."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return is_number and 0 <= _to_float(value) <= 1


def _is_dict(result: object) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(result, Mapping)


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


def _refuse(name: str, result: object) -> Unknown:
    value = next((result[key] for key in ("value", "score") if key in result), None) if _is_dict(result) else result
    hint = ""
    if _is_dict(result) and not {"value", "score"} & result.keys():
        hint = ": it has neither 'value' nor 'score'"
    elif inspect.isawaitable(value) or inspect.isgenerator(value) or inspect.isasyncgen(value):
        hint = ": write def instead of async def, and return instead of yield"
        if inspect.iscoroutine(value):
            value.close()  # else the interpreter warns that nobody has awaited it
    elif isinstance(value, bool) or type(value).__name__ == "bool":  # numpy's
        hint = ": write float(...) around the comparison"
    elif hasattr(value, "__float__") and not isinstance(value, numbers.Real):  # a tensor, an array, a Decimal
        hint = ": write float(...) around it"
    why = f"the verifier {name} gave {result!r:.200}, which is no verdict and no number from 0 to 1{hint}"
    return Unknown(why=_clean(why), rule=name)


def _clean(value: object) -> str:
    """A text that can be sent: cut, and without halves of surrogate pairs."""
    return str(value)[:_MAX_CHARS].encode("utf-8", "replace").decode()


def _plan_call(function: Callable[..., object], where: str) -> tuple[list[str], dict[str, str]]:
    """(arguments by position, {parameter: argument} by keyword). ConfigError for a parameter that nobody gives."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # written in C
        return list(_BY_POSITION), {}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    plain = [p for p in parameters if p.kind not in _VARIADIC]
    strange = [p.name for p in plain if p.default is inspect.Parameter.empty and _argument(p) not in ARGUMENTS]
    if strange or not (takes_all or any(_argument(p) in ARGUMENTS for p in plain)):
        if _takes_two(parameters):
            return list(_BY_POSITION), {}
        told = f"needs {', '.join(map(repr, strange))}, which nobody gives" if strange else "takes no argument"
        raise ConfigError(
            f"{where}: the function {told}. Remedy: let it take some of {', '.join(ARGUMENTS)} by these names, or "
            f"(text of the completion, ground truth) by position"
        )
    by_position: list[str] = []
    by_keyword: dict[str, str] = {}
    for parameter in plain:
        argument = _argument(parameter)
        if argument not in ARGUMENTS:
            continue  # it has a default
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            by_position.append(argument)
        else:
            by_keyword[parameter.name] = argument
    if takes_all:
        by_keyword |= {name: name for name in ARGUMENTS if name not in {*by_keyword.values(), *by_position}}
    return by_position, by_keyword


def _argument(parameter: inspect.Parameter) -> str:
    return _ALIASES.get(parameter.name, parameter.name)


def _takes_two(parameters: list[inspect.Parameter]) -> bool:
    """Whether it can be called with (text, gold) by position, and no name of the two says that it means others."""
    positional = [p for p in parameters if p.kind in _POSITIONAL]
    others = [p for p in parameters if p.kind not in (*_POSITIONAL, *_VARIADIC)]
    if any(p.default is inspect.Parameter.empty for p in [*positional[2:], *others]):
        return False
    for parameter, meant in zip(positional, _BY_POSITION, strict=False):
        if _argument(parameter) in ARGUMENTS and _argument(parameter) != meant:
            return False
    if positional and _argument(positional[0]) == "response" and positional[1:] and positional[1].name not in _GOLDS:
        return False
    return len(positional) >= 2 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)


def _find_other_kind(function: Callable[..., object]) -> str:
    """Tells what it is where calling it gives no number; "" for a function, or an object that is called like one."""
    if inspect.isclass(function):
        return "class"
    for called in (inspect.unwrap(function), vars(type(function)).get("__call__")):
        while isinstance(called, functools.partial):
            called = called.func
        if inspect.iscoroutinefunction(called):
            return "coroutine (async def)"
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            return "generator (yield)"
    return ""


def _source_file(function: Callable[..., object]) -> str:
    """Where it was written; "" for what is not written in Python."""
    for candidate in (inspect.unwrap(function), getattr(function, "func", None), type(function)):
        try:
            return inspect.getsourcefile(candidate) or ""  # type: ignore[arg-type]
        except TypeError:  # an object that can be called, a partial one, or something written in C
            continue
    return ""
