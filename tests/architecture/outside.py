"""Commands, options, keys and defaults that users hold on to, read from the code without starting anything.

    python tests/architecture/outside.py          # prints what the code has now
    python tests/architecture/outside.py --write  # makes it what is frozen in outside.json: a deliberate act

Commands, their options and defaults come from the live command line; configuration keys and defaults from the
sections; options of the scripts in tests/bench from their calls of argparse. Exit codes, keys of a run's files and of
the scripts' JSON lines stand in outside.json alone, and `test_outside.py` compares them with what is built.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import typer

from hybridflow import cli
from hybridflow.config.keys import list_keys
from hybridflow.config.sections import Config
from hybridflow.tools.sft_config import SftConfig

ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).with_name("outside.json")
BENCHES = ROOT / "tests/bench"
OPEN_NAMES = (
    r"(groups/filtered)/.+",
    r"(reward/parts)/.+",
    r"(rollout/events)/.+",
    r"((?:eval/)?judge/failures)/.+",
    r"(policy/logprob_\w+/staleness)_\d+",
)
"""Metrics whose last part comes from the run: a reason, a function's name, an event, an age."""


def read_frozen() -> dict[str, Any]:
    return json.loads(FROZEN.read_text())


def list_commands() -> dict[str, Any]:
    """Each command with its parameters: every spelling, whether required or repeated, and the default."""
    cli.mount_commands()
    return dict(sorted(_walk(typer.main.get_command(cli.app), "hybridflow")))


def _walk(command: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield from _walk(inner, f"{path} {name}")
    yield path, {" ".join([*p.opts, *p.secondary_opts]): _describe(p) for p in command.params}


def _describe(parameter: Any) -> str:
    default = getattr(parameter.default, "value", parameter.default)
    words = ["required"] if parameter.required else [f"default {json.dumps(_plain(default))}"]
    return ", ".join(words + ["flag"] * bool(getattr(parameter, "is_flag", False)) + ["repeated"] * parameter.multiple)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, int | float | str | None) else str(value).replace(f"{ROOT}/", "")


def list_config_keys() -> dict[str, dict[str, str]]:
    """By kind of run: each key with its kind and default."""
    roots = {"train": Config, "sft": SftConfig}
    return {kind: {key.path: f"{key.kind}; {key.default}" for key in list_keys(root)} for kind, root in roots.items()}


def list_bench_options() -> dict[str, dict[str, dict[str, str]]]:
    """By script and option: what argparse is told, but for the help text."""
    return {path.name: _options(ast.parse(path.read_text())) for path in sorted(BENCHES.glob("*.py"))}


def _options(tree: ast.Module) -> dict[str, dict[str, str]]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return {
        ast.literal_eval(call.args[0]): {
            keyword.arg or "**": ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg != "help"
        }
        for call in calls
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"
    }


def list_bench_defaults() -> dict[str, dict[str, Any]]:
    """Defaults of `train_step.py`, without options and with `--mode grpo`: some defaults depend on the mode."""
    tree = ast.parse((BENCHES / "train_step.py").read_text())
    constants: dict[str, Any] = {"argparse": argparse}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
            try:
                values = ast.literal_eval(node.value)
            except ValueError:
                continue
            values = values if isinstance(node.targets[0], ast.Tuple) else [values]
            constants |= {
                name.id: value for name, value in zip(names, values, strict=True) if isinstance(name, ast.Name)
            }
    parse = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "parse_arguments")
    parse.returns = None
    exec(compile(ast.Module([parse], []), "train_step.py", "exec"), constants)
    before, defaults = sys.argv, {}
    try:
        for arguments in ([], ["--mode", "grpo"]):
            sys.argv = ["train_step.py", *arguments]
            defaults[" ".join(sys.argv)] = vars(constants["parse_arguments"]())
    finally:
        sys.argv = before
    return defaults


def literal_keys(script: Path) -> set[str]:
    """Strings that are a key of some dict in the file; `*` stands for a part that is filled in."""
    keys: set[str] = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Dict):
            keys |= {_pattern(key) for key in node.keys if key is not None}
        elif isinstance(node, ast.Subscript):
            keys.add(_pattern(node.slice))
    return keys - {""}


def _pattern(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
    return ""


def keys_of(lines: Iterable[dict[str, Any]]) -> list[str]:
    """All keys of some lines in order; what a run names itself is `*`."""
    return sorted({_name(key) for line in lines for key in line})


def _name(key: str) -> str:
    for pattern in OPEN_NAMES:
        if found := re.fullmatch(pattern, key):
            return f"{found[1]}{'_' if found[1].endswith('staleness') else '/'}*"
    return key


def differences(folder: Path, optional: Iterable[str] = ()) -> dict[str, list[str]]:
    """Keys that went from the files of a finished run, or are new in them, by file; `optional` ones may be missing."""
    files = read_frozen()["files"]
    metrics, completions = files["metrics.jsonl"], files["completions.jsonl"]
    lines = {name: read_lines(folder / name) for name in files if (folder / name).suffix == ".jsonl"}
    kinds = {
        "metrics.jsonl": (metrics["step"] + metrics["evaluation"], [key for keys in metrics.values() for key in keys]),
        **{
            name: (kind["line"], kind["line"] + kind.get("sometimes", []))
            for name, kind in files.items()
            if "line" in kind
        },
    }
    seen = {name: (keys_of(lines[name]), *kinds[name]) for name in lines if lines[name]}
    spans = files["timeline.jsonl"]["spans"]
    seen["spans"] = (
        keys_of(line["spans"] for line in lines["timeline.jsonl"]),
        spans,
        [*spans, "checkpoint", "eval", "measure", "reference"],
    )
    verdict = completions["verdict"]
    verdicts = keys_of(line["verdict"] for line in lines["completions.jsonl"])
    seen["verdict"] = (verdicts, verdict, verdict + completions["verdict_sometimes"])
    wrong = {
        name: sorted((set(needed) - set(optional) - set(keys)) | (set(keys) - set(known)))
        for name, (keys, needed, known) in seen.items()
    }
    return {name: keys for name, keys in wrong.items() if keys}


def dotted(summary: dict[str, Any]) -> list[str]:
    """Keys with those of inner tables; what a run names itself, and the judge's counts, are left out."""
    own = ("filtered", "rollout_events", "phase_seconds", "judge")
    inner = {key: dotted(value) for key, value in summary.items() if isinstance(value, dict) and key not in own}
    return [path for key in summary for path in [key, *(f"{key}.{name}" for name in inner.get(key, []))]]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def gather() -> dict[str, Any]:
    """Everything that can be read from the code alone."""
    return {
        "commands": list_commands(),
        "keys": list_config_keys(),
        "bench_options": list_bench_options(),
        "bench_defaults": list_bench_defaults(),
    }


if __name__ == "__main__":
    now = (read_frozen() if FROZEN.exists() else {}) | gather()
    text = json.dumps(now, indent=1) + "\n"
    if "--write" in sys.argv:
        FROZEN.write_text(text)
    else:
        print(text, end="")
