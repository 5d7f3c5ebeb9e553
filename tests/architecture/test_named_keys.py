"""Every `section.key` that an error or a document names is a key of the configuration."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybridflow.config.keys import ITEM, list_keys
from hybridflow.config.sections import Config
from hybridflow.tools.sft_config import SftConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docker/*.md"), *ROOT.glob("configs/**/*.toml")]
SECTIONS = sorted({*Config.model_fields, *SftConfig.model_fields})
NAMED = re.compile(rf"(?<![\w./\"'-])({'|'.join(SECTIONS)})((?:\.[a-z_]\w*|\.\d+)+)(?!\w*[/(])")
FILES = ("jsonl", "json", "py", "parquet", "toml", "md", "safetensors", "txt", "index", "bin", "pt", "log")
"""Last parts of what is a file and no key."""
OTHERS = {
    "model.layers", "model.embed_tokens", "model.norm", "model.decoder", "model.embedding", "model.model"
}  # fmt: skip
"""Parameters of models, by their names there."""
KEYS = {key.path: key.kind for root in (Config, SftConfig) for key in list_keys(root)}


def is_key(path: str) -> bool:
    """A key, a section of keys, or what stands below a table whose keys are the user's."""
    path = re.sub(r"\.\d+(?=\.|$)", f".{ITEM}", path)
    return any(key == path or key.startswith((f"{path}.", f"{path}.{ITEM}.")) for key in KEYS) or any(
        kind == "table" and path.startswith(f"{key}.") for key, kind in KEYS.items()
    )


def named_in(text: str) -> Iterator[str]:
    for match in NAMED.finditer(text):
        path = match[0]
        first_two = path.split(".")[:2]
        if path.rpartition(".")[2] in FILES or ".".join(first_two) in OTHERS:
            continue
        if not (ROOT / "hybridflow" / "/".join(first_two)).with_suffix(".py").exists():  # or it is a module of ours
            yield path


def texts_in(path: Path) -> Iterator[tuple[int, str]]:
    """Strings with a space in them: what is said to somebody. Of an f-string what is written in it.

    Docstrings count in `config`, where they are what `hybridflow config --keys` prints.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unsaid = (
        {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)} if "config" not in path.parts else ()
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            written = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(map(str, written))
        elif isinstance(node, ast.Constant) and id(node) not in unsaid:
            yield node.lineno, node.value if isinstance(node.value, str) and " " in node.value else ""


def test_keys_that_the_code_names_exist() -> None:
    wrong = {
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for top in ("hybridflow", "megatron_ext")
        for path in (ROOT / top).rglob("*.py")
        for line, text in texts_in(path)
        for name in named_in(text)
        if not is_key(name)
    }
    assert sorted(wrong) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_keys_that_a_document_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    wrong = {f"{text[: match.start()].count(chr(10)) + 1}: {match[0]}" for match in NAMED.finditer(text)}
    assert (
        sorted(name for name in wrong if any(not is_key(one) for one in named_in(f" {name.partition(': ')[2]}"))) == []
    )


def test_what_is_a_key_and_what_is_not() -> None:
    text = (
        "raise reward.memory_limit_mib or reward.memory_limit_gib; train.jsonl, warmup.stages.0.name, rollout.sglang.x"
    )
    assert list(named_in(text)) == [
        *["reward.memory_limit_mib", "reward.memory_limit_gib", "warmup.stages.0.name", "rollout.sglang.x"]
    ]
    assert [name for name in named_in(text) if not is_key(name)] == ["reward.memory_limit_mib"]
