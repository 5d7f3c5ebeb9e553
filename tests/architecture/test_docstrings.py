"""First lines of docstrings are understandable in `help()`: the field's word first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.modules import ROOT

NEVER_FIRST = {"Of", "That", "Those", "These", "What"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def first_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line, first line) of each docstring of a module, class or function, and of each text below an assignment."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        for before, statement in zip([None, *body], body, strict=False):
            is_first = before is None and isinstance(node, DOCUMENTED)
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                text = statement.value.value
                if isinstance(text, str) and (is_first or isinstance(before, ast.Assign | ast.AnnAssign)):
                    yield statement.lineno, text.strip().partition("\n")[0]


def test_no_first_line_begins_in_the_middle_of_a_thought() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for top in ("hybridflow", "megatron_ext", "tests", "docs", "docker")
        for path in sorted((ROOT / top).rglob("*.py"))
        for number, line in first_lines(path)
        if line.split(" ")[0].rstrip(",:;") in NEVER_FIRST
    ]
    assert wrong == [], "a verb or a noun first: what it is, what it gives, what it does"


def test_which_lines_are_first(tmp_path: Path) -> None:
    source = (
        '"""Of a module."""\nX = 1\n"""Of X."""\ndef f():\n    """What f\n    gives."""\n    print("Of no matter")\n'
    )
    (tmp_path / "one.py").write_text(source)
    assert list(first_lines(tmp_path / "one.py")) == [(1, "Of a module."), (3, "Of X."), (5, "What f")]
