"""The trainer knows nothing of rollouts: what its probabilities depend on comes with the batch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TRAINER = Path(__file__).parents[2] / "hybridflow/trainer"


@pytest.mark.parametrize("path", sorted(TRAINER.glob("*.py")), ids=lambda path: path.name)
def test_no_import_and_no_key_of_the_rollout(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    named = {name for name in names if "rollout" in name or name.endswith("sections.Config")}
    keys = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "rollout"]
    assert (named, keys) == (set(), [])
