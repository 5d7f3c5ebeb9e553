"""Every `section.key` that a text of the program names is there: a wrong remedy is worse than none."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridflow.config.keys import ITEM, list_keys
from hybridflow.config.sections import Config
from hybridflow.tools.sft_config import SftConfig

ROOT = Path(__file__).parents[3]
KEYS = {key.path for root in (Config, SftConfig) for key in list_keys(root)}
KEYS |= {path.replace(f".{ITEM}.", ".") for path in KEYS}  # of any item
SECTIONS = {path.rsplit(".", count)[0] for path in KEYS for count in range(1, path.count(".") + 1)}
TABLES = tuple(key.path + "." for root in (Config, SftConfig) for key in list_keys(root) if key.kind == "table")
NAMED = re.compile(
    rf"(?<![\w./:-])(?:{'|'.join(sorted(path for path in SECTIONS if '.' not in path))})(?:\.\w+)+(?![\w(/-])"
)
OTHERS = re.compile(r"\.(?:parquet|jsonl|json|toml|safetensors|py)$|^model\.(?:layers|embed_tokens|norm)\b")
"""Files, and tensors."""


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what is said to a user: every string but docstrings, with ITEM for what is put in."""
    tree = ast.parse(path.read_text())
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else ITEM for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said | parts:
            yield node.lineno, node.value


@pytest.mark.parametrize("package", ["hybridflow", "megatron_ext"])
def test_keys_that_are_named_exist(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {found[0]}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in texts_of(path)
        for found in NAMED.finditer(text)
        if not OTHERS.search(found[0])
        and re.sub(r"\.\d+\b", f".{ITEM}", found[0]).removesuffix(f".{ITEM}") not in KEYS | SECTIONS
        and not found[0].startswith(TABLES)
    ]
    assert not wrong, wrong
