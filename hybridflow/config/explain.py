"""Validation failures of pydantic, said as: key path, value, source, rule, remedy.

A validator of a section raises ValueError("<rule>. Remedy: <remedy>"); what follows "Remedy:" gets its own line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hybridflow.config.conflicts import CONFLICT_BREAK
from hybridflow.config.keys import ITEM, list_keys
from hybridflow.config.section import hide_secrets
from hybridflow.config.toml_tree import KeyPath, TomlTree, format_key_path

_DOTTED = re.compile(r"\b[a-z]\w*(?:\.\w+)+")
MAX_SHOWN = 30
"""Problems that are told one by one."""
_WHAT_TO_GIVE = {
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "dict_type": "write it as a table",
    "float_parsing": "give a number",
    "finite_number": "give a finite number",
    "float_type": "give a number",
    "int_from_float": "give a whole number",
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "list_type": "give a list: [...]",
    "string_type": 'put it in quotes: "..." in a file, \'key="..."\' in --set',
    "tuple_type": "give a list: [...]",
}
_BOUNDS = {
    "greater_than": ("gt", "give a value above {}"),
    "greater_than_equal": ("ge", "give a value of at least {}"),
    "less_than": ("lt", "give a value below {}"),
    "less_than_equal": ("le", "give a value of at most {}"),
    "multiple_of": ("multiple_of", "give a multiple of {}"),
    "too_short": ("min_length", "give at least {} items"),
    "too_long": ("max_length", "give at most {} items"),
    "string_pattern_mismatch": ("pattern", "give a text that matches {}"),
    "string_too_short": ("min_length", "give a text of at least {} characters"),
    "string_too_long": ("max_length", "give a text of at most {} characters"),
}


def explain(error: ValidationError, tree: TomlTree, root: type[BaseModel]) -> str:
    """All problems of `error` as one text for the user."""
    problems = [part for problem in error.errors(include_url=False) for part in _split(problem)]
    lines = [_explain_one(problem, tree, root) for problem in problems[:MAX_SHOWN]]
    more = [f"  and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
    return "\n".join([_count(len(problems)), *lines, *more])


def explain_rules(rules: Sequence[str]) -> str:
    """Rules that are broken, each "<what is wrong>. Remedy: <what to do>", as one text for the user."""
    parts = [rule.partition("Remedy:") for rule in rules]
    lines = [f"      rule:   {rule.strip()}\n      remedy: {remedy.strip()}" for rule, _, remedy in parts]
    return "\n".join([_count(len(rules)), *lines])


def _count(number: int) -> str:
    return f"{number} problem{'' if number == 1 else 's'} in the configuration"


def _split(problem: ErrorDetails) -> list[ErrorDetails]:
    """One for each rule that an error of several names."""
    head, comma, rules = problem["msg"].partition(", ")
    if CONFLICT_BREAK not in rules:
        return [problem]
    return [{**problem, "msg": f"{head}{comma}{rule}"} for rule in rules.split(CONFLICT_BREAK)]


def _explain_one(problem: ErrorDetails, tree: TomlTree, root: type[BaseModel]) -> str:
    location, kind = problem["loc"], problem["type"]
    key_path = _key_path(location, kind, tree.values)
    where = format_key_path(key_path) or "(whole configuration)"
    fields = _fields_at(root, location[:-1])
    rule, remedy = problem["msg"], _WHAT_TO_GIVE.get(kind, "")
    context = problem.get("ctx", {})

    if kind == "extra_forbidden":
        rule, remedy = "unknown key", _nearest(str(location[-1]), fields)
    elif kind == "missing":
        where = ".".join([where, *_required_at(root, location)[:1]])
        rule, remedy = "required, but no file sets it", f"set it in a file, or with --set {where}=..."
    elif kind == "model_type":
        rule = "a section has keys of its own"
        table = ", ".join(f"{name} = ..." for name in _required_at(root, location)) or "key = ..."
        remedy = f"write it as a table, {{{table}}}, or name a key of it: {', '.join(_fields_at(root, location))}"
    elif kind == "list_type" and (needed := _required_at(root, location)):
        remedy = f"give a list of tables: [{{{', '.join(f'{name} = ...' for name in needed)}}}]"
    elif kind in _BOUNDS:
        name, template = _BOUNDS[kind]
        remedy = template.format(context.get(name))
    elif kind == "literal_error":
        remedy = _nearest_value(problem["input"], str(context.get("expected", "")))
    elif kind == "union_tag_not_found":
        remedy = f"set {where}.{str(context['discriminator']).strip(chr(39))}"
    elif kind == "union_tag_invalid":
        rule = f"{context['tag']!r} is no known {context['discriminator']}"
        remedy = _nearest_value(context["tag"], str(context["expected_tags"]))
    elif kind in ("value_error", "assertion_error"):
        rule, _, remedy = rule.partition(", ")[2].partition("Remedy:")

    head = f"  {where}" if kind == "missing" or not key_path else f"  {where} = {_shorten(problem['input'])}"
    source = tree.source_of(key_path) if kind != "missing" else None
    lines = [head + (f"    [{hide_secrets(source)}]" if source else ""), f"      rule:   {rule.strip()}"]
    if remedy:
        lines.append(f"      remedy: {remedy.strip()}")
    lines += [f"      set by: {setters}"] if (setters := name_setters(rule, tree, root)) else []
    return "\n".join(lines)


def name_setters(rule: str, tree: TomlTree, root: type[BaseModel]) -> str:
    """Who set each key that a rule names; empty where it names fewer than two, or says it itself."""
    keys = find_keys(rule, root)
    setters = [f"{key}: {hide_secrets(tree.source_of(_read_path(key)) or 'default')}" for key in keys]
    return "; ".join(setters) if len(keys) > 1 else ""


def find_keys(rule: str, root: type[BaseModel]) -> list[str]:
    """The keys of `root` that a message names, each once."""
    known = {key.path for key in list_keys(root)}
    return [key for key in dict.fromkeys(_DOTTED.findall(rule)) if _without_items(key) in known]


def _without_items(key: str) -> str:
    """`key` as `list_keys` has it: "curriculum.phases.N.window" for "curriculum.phases.1.window.0"."""
    return re.sub(r"\.\d+", f".{ITEM}", key).removesuffix(f".{ITEM}")


def _read_path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _key_path(location: tuple[str | int, ...], kind: str, values: Any) -> KeyPath:
    """The keys of `location` as the user writes them: pydantic also puts the tag of a union's member in it."""
    key_path: KeyPath = ()
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if _holds(values, part):
            values = values[part]
        elif not (last and kind == "missing"):
            continue
        key_path = (*key_path, part)
    return key_path


def _holds(values: Any, part: str | int) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, dict) and part in values


def _fields_at(root: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Names of the fields of the section that `location` leads to; of all its kinds where it is a union."""
    return sorted({name for model in _models_at(root, location) for name in model.model_fields})


def _required_at(root: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Names of the keys that the section, or each item of the list, at `location` must have; none of a union."""
    models = _models_at(root, location)
    fields = models[0].model_fields if len(models) == 1 and models[0] is not root else {}
    return [name for name, field in fields.items() if field.is_required()]


def _models_at(root: type[BaseModel], location: tuple[str | int, ...]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [root]
    for part in location:
        if isinstance(part, int):
            continue
        below = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        if below:
            models = [found for annotation in below for found in _models_in(annotation)]
        else:
            models = [model for model in models if _has_tag(model, part)] or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Sections named anywhere in an annotation: `list[A | B]`, `Annotated[A | B, ...]`, `A | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return model.__name__ == tag or any(tag in get_args(field.annotation) for field in model.model_fields.values())


def _nearest(name: str, known: list[str]) -> str:
    if not known:
        return "remove it"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? " if near else "remove it. "
    return f"{hint}Known here: {', '.join(known)}"


def _nearest_value(value: object, expected: str) -> str:
    options = [option.strip(" '\"") for option in expected.replace(" or ", ", ").split(",")]
    near = difflib.get_close_matches(str(value), options, n=1, cutoff=0.6)
    return f"give {expected}" + (f"; did you mean {near[0]!r}?" if near else "")


def _shorten(value: object, width: int = 80) -> str:
    text = hide_secrets(repr(value))
    return text if len(text) <= width else text[: width - 3] + "..."
