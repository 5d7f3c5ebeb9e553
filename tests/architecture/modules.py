"""The modules of both packages, read as text: which there are, what each imports, what each names.

A module is a `.py` file of hybridflow or megatron_ext that has code of its own: an `__init__.py` that holds no function
and no class is the front of its package, and what is imported through it counts for the module that it comes from.
Files in `cpu/path` stand for packages of others and are no modules.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOPS = ("hybridflow", "megatron_ext")


@dataclass(frozen=True)
class Module:
    """One file, parsed."""

    name: str
    """As it is imported."""
    path: Path
    text: str
    tree: ast.Module
    is_package: bool

    @property
    def package(self) -> str:
        """First two names, `hybridflow.rewards`; a module directly in a top-level package is its own package."""
        return ".".join(self.name.split(".")[:2])

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def has_code(self) -> bool:
        """Whether anything is defined here, and not only taken from elsewhere."""
        defines = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        return not self.is_package or any(isinstance(node, defines) for node in self.tree.body)


def read_modules(root: Path = ROOT) -> dict[str, Module]:
    """All files by dotted name, fronts of packages included."""
    found: dict[str, Module] = {}
    for top in TOPS:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if "path" in parts:
                continue
            name = ".".join(parts).removesuffix(".__init__")
            text = path.read_text(encoding="utf-8")
            found[name] = Module(name, path, text, ast.parse(text), path.name == "__init__.py")
    return found


def read_imports(modules: dict[str, Module]) -> dict[str, set[str]]:
    """By module: the modules of ours that it imports anywhere, in functions and for type checkers too.

    A name that a package's front takes from a module is an import of that module.
    """
    fronts = {name: _names_of_front(module, modules) for name, module in modules.items() if module.is_package}
    imports: dict[str, set[str]] = {}
    for name, module in modules.items():
        targets = {target for node in ast.walk(module.tree) for target in _targets(node, module, modules, fronts)}
        imports[name] = targets - {name}
    return imports


def _names_of_front(front: Module, modules: dict[str, Module]) -> dict[str, str]:
    """The module that each name in a package's front comes from."""
    names: dict[str, str] = {}
    for node in front.tree.body:
        if isinstance(node, ast.ImportFrom) and (source := _source(node, front)) in modules:
            names |= {alias.asname or alias.name: source for alias in node.names}
    return names


def _source(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    base = module.name.split(".")
    base = base[: len(base) - node.level + module.is_package]
    return ".".join([*base, node.module] if node.module else base)


def _targets(
    node: ast.AST, module: Module, modules: dict[str, Module], fronts: dict[str, dict[str, str]]
) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom):
        source = _source(node, module)
        for alias in node.names:
            if f"{source}.{alias.name}" in modules:
                yield f"{source}.{alias.name}"
            elif alias.name in fronts.get(source, {}):
                yield fronts[source][alias.name]
            elif source in modules:
                yield source
