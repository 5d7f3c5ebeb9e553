"""Sizes that the code keeps; `sizes.py` and `walks.py` count them, and count rightly."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture import sizes, walks
from tests.architecture.modules import Module, read_modules

FILES = {
    "hybridflow/__init__.py": "",
    "hybridflow/types/__init__.py": "from hybridflow.types.rollout import Completion",
    "hybridflow/types/rollout.py": "class Completion:\n    x = 1\n",
    "hybridflow/wire/__init__.py": "",
    "hybridflow/wire/packed.py": "from hybridflow.types import Completion\nfrom hybridflow.rollout import engine\n",
    "hybridflow/rollout/__init__.py": "",
    "hybridflow/rollout/engine.py": (
        "def take(self, completion):\n"
        "    import hybridflow.wire.packed\n    self.left.discard(completion.index)\n    return 1\n"
    ),
    "hybridflow/rewards/__init__.py": "",
    "hybridflow/rewards/registry.py": "from hybridflow.rewards import docqa\n",
    "hybridflow/rewards/docqa.py": "import asyncio\nfrom asyncio import Task\n",
    "hybridflow/tools/__init__.py": "",
    "hybridflow/tools/score.py": "from hybridflow.types import Completion\n",
    "megatron_ext/__init__.py": "",
}
"""A small tree: two packages that need each other, an entry of a registry, a command beside the loop."""


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return read_modules()


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Module]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return read_modules(tmp_path)


def test_functions_and_modules_are_small(modules: dict[str, Module]) -> None:
    assert [name for number, name in sizes.function_lines(modules) if number > sizes.MAX_FUNCTION_LINES] == []
    assert [name for number, name in sizes.module_lines(modules) if number > sizes.MAX_MODULE_LINES] == []


def test_no_two_packages_import_each_other(modules: dict[str, Module]) -> None:
    assert sizes.two_way_pairs(modules) == []


def test_at_most_a_quarter_of_the_modules_has_one_importer(modules: dict[str, Module]) -> None:
    """More of them would be packages cut so fine that a reader has to put them together again."""
    assert len(sizes.single_importers(modules)) <= len(sizes.module_lines(modules)) / 4


def test_who_is_outstanding_is_kept_in_at_most_four_registers(modules: dict[str, Module]) -> None:
    assert len(walks.registers(modules)) <= 4


def test_the_verbs_of_a_run_are_read_in_one_sitting(modules: dict[str, Module]) -> None:
    """`Run` has at most 120 lines, and its module imports from at most 12 others of the project."""
    body = modules["hybridflow.loop.run"].tree.body
    (run,) = (node for node in body if isinstance(node, ast.ClassDef) and node.name == "Run")
    assert (run.end_lineno or 0) - run.lineno < 120
    imported = [node.module for node in body if isinstance(node, ast.ImportFrom) and node.module]
    assert len([module for module in imported if module.startswith("hybridflow")]) <= 12


@pytest.mark.parametrize("what", walks.WALKS)
def test_a_walk_goes_through_few_files(what: str, modules: dict[str, Module]) -> None:
    assert len(walks.walk(modules, *walks.WALKS[what])) <= walks.MAX_WALK


def test_what_is_counted_in_a_small_tree(small: dict[str, Module]) -> None:
    assert len(sizes.module_lines(small)) == 6
    assert sizes.function_lines(small) == [(4, "hybridflow.rollout.engine:1 take")]
    assert [pair.partition(":")[0] for pair in sizes.two_way_pairs(small)] == ["hybridflow.rollout and hybridflow.wire"]
    # docqa is an entry of a registry; Completion comes through the front of its package, to two
    assert sizes.single_importers(small) == [
        ("hybridflow.rollout.engine", "hybridflow.wire.packed"),
        ("hybridflow.wire.packed", "hybridflow.rollout.engine"),
    ]
    assert list(walks.walk(small, walks.COMPLETION, walks.BESIDE_THE_COMPLETION)) == [
        "hybridflow.types.rollout",
        "hybridflow.wire.packed",
    ]
    assert walks.registers(small) == {"hybridflow.rollout.engine": ["3: self.left.discard(completion.index)"]}


def test_every_record_that_is_followed_is_there(modules: dict[str, Module]) -> None:
    """Or the walks are too short."""
    defined = {name for module in modules.values() for name in walks.names_in(module)}
    assert {*walks.COMPLETION, *walks.PROMPT} - defined == set()


def test_every_exception_is_needed(modules: dict[str, Module]) -> None:
    """A name that excuses no module now would excuse one that is called so some day."""
    needed: set[str] = set()
    for what, (records, beside) in walks.WALKS.items():
        naming = [m.name.split(".") for m in modules.values() if m.has_code and walks.names_in(m) & records]
        needed |= {name for name in walks.BESIDE for parts in naming if name in parts}
        assert [name for name in beside if not any(name in parts for parts in naming)] == [], what
    assert set(walks.BESIDE) - needed == set()
    assert [last for last in sizes.REGISTRIES if not any(sizes.is_named(name, last) for name in modules)] == []
