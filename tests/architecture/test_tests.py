"""Rules of the tests themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("hybridflow", "megatron_ext", "docker")
BENCH = ROOT / "tests/bench"
BUILDERS = ROOT / "tests/builders.py"
BIG_RECORDS = {"Completion", "Prompt", "GroupRequest"}
OWN = {"self", "cls"}
UPSTREAM = {
    "_replace",
    "_manager",
    "_process",
    "_object_to_tensor",
    "_tensor_to_object",
    "_set_main_param_and_optimizer_states",
}
"""Names of libraries that modules of ours have too, where they patch them."""


def test_no_test_drives_private_attributes_of_ours() -> None:
    """A test takes from a module only public names, or has the rest by the public way."""
    ours = {name for package in PACKAGES for path in (ROOT / package).rglob("*.py") for name in private_names(path)}
    driven = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in uses_of_private_names(ast.parse(path.read_text()))
        if name in ours - UPSTREAM - private_names(path)
    ]
    assert not driven, "\n".join(driven)


def test_big_records_are_built_in_one_place() -> None:
    """A further field of a completion or a prompt is then a line here. Benches time their own."""
    by_hand = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.func.id}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if path != BUILDERS and BENCH not in path.parents
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BIG_RECORDS
    ]
    assert not by_hand, "\n".join(["take tests/builders.py in place of", *by_hand])


def private_names(path: Path) -> set[str]:
    """Names with one leading underscore that a file gives to a function, class, variable or attribute."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in names if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def uses_of_private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Attributes of others, imported names, and names given to setattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in OWN):
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "setattr":
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            yield from ((node.lineno, text) for text in texts if isinstance(text, str) and is_private(text))
