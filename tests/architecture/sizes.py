"""Sizes of the code: modules, functions, packages that import each other, modules with a single importer.

    python tests/architecture/sizes.py            # the counts, and what they are made of, file by file
    python tests/architecture/sizes.py --brief    # the counts alone
    python tests/architecture/sizes.py --root ..  # of another checkout

What is counted is said where it is counted. `modules.py` says what a module is.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.architecture.modules import ROOT, Module, read_imports, read_modules

MAX_FUNCTION_LINES = 64
MAX_MODULE_LINES = 350
REGISTRIES = ("cli", "commands", "registry", "preflight.run")
"""Last names of modules that list entries of one kind: commands, verifiers, algorithms, checks. What such a module
alone imports is an entry of it, and no piece of a module that was cut up."""


def function_lines(modules: dict[str, Module]) -> list[tuple[int, str]]:
    """(lines, function), largest first: from `def` to the last line, signature and docstring included."""
    functions = [
        (node.end_lineno - node.lineno + 1, f"{module.name}:{node.lineno} {node.name}")
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    ]
    return sorted(functions, reverse=True)


def module_lines(modules: dict[str, Module]) -> list[tuple[int, str]]:
    """(lines, module), largest first; all lines of a file count."""
    return sorted(((module.num_lines, module.name) for module in modules.values() if module.has_code), reverse=True)


def two_way_pairs(modules: dict[str, Module]) -> list[str]:
    """Pairs of packages that import each other, with the imports of the smaller direction.

    A module that stands directly in a top-level package counts as a package of its own. An import inside a function,
    or for type checkers alone, counts.
    """
    between: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for name, targets in read_imports(modules).items():
        for target in targets:
            packages = (modules[name].package, modules[target].package)
            if packages[0] != packages[1] and "." in packages[0] and "." in packages[1]:
                between[packages].append(f"{name} imports {target}")
    return [
        f"{one} and {other}: {'; '.join(sorted(min(forth, between[other, one], key=len)))}"
        for (one, other), forth in sorted(between.items())
        if one < other and (other, one) in between
    ]


def single_importers(modules: dict[str, Module]) -> list[tuple[str, str]]:
    """(module, its importer) of each module that exactly one other module imports, unless that one is a registry."""
    importers: defaultdict[str, set[str]] = defaultdict(set)
    for name, targets in read_imports(modules).items():
        for target in targets:
            if modules[name].has_code:
                importers[target].add(name)
    single = {name: next(iter(by)) for name, by in importers.items() if len(by) == 1 and modules[name].has_code}
    return sorted((name, by) for name, by in single.items() if not is_registry(by))


def is_registry(name: str) -> bool:
    return any(is_named(name, last) for last in REGISTRIES)


def is_named(name: str, last: str) -> bool:
    return f".{name}".endswith(f".{last}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--root", type=Path, default=ROOT)
    options = parser.parse_args()
    modules = read_modules(options.root)
    lines, functions = module_lines(modules), function_lines(modules)
    pairs, single = two_way_pairs(modules), single_importers(modules)
    if not options.brief:
        print("\n".join(f"{number:5d} {name}" for number, name in lines))
        print("\n".join(f"function of {number} lines: {name}" for number, name in functions[:40]))
        print("\n".join(f"two ways: {pair}" for pair in pairs))
        print("\n".join(f"one importer: {name} <- {by}" for name, by in single))
    print(f"modules: {len(lines)}; lines: median {statistics.median(n for n, _ in lines):.0f}, largest {lines[0]}")
    print(f"largest function: {functions[0]}")
    print(f"two-way pairs of packages: {len(pairs)}")
    print(f"modules with exactly one importer: {len(single)} of {len(lines)}, {len(single) / len(lines):.1%}")


if __name__ == "__main__":
    main()
