"""docs/modules.md: each module of both packages with the first line of its docstring.

python tests/architecture/module_table.py --write
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.architecture.modules import ROOT, TOPS, Module, read_modules

TABLE = ROOT / "docs/modules.md"
HEAD = """# Modules

The first line of each docstring, by package. Made by `make modules`; a test says when it is out of date.
"""


def build_table(modules: dict[str, Module]) -> str:
    """A heading per package with what its front says of it, then its modules in order of their names."""
    blocks: dict[str, list[str]] = {}
    for top in TOPS:
        for name, module in sorted(modules.items()):
            if name.partition(".")[0] != top:
                continue
            package = name if module.is_package else name.rpartition(".")[0]
            lines = blocks.setdefault(package, [f"\n## {package}\n"])
            if module.is_package:
                lines.append(f"{first_line(module)}\n")
            else:
                lines += ["| module | |\n|---|---|"] * (not lines[-1].startswith("|"))
                lines.append(f"| `{name.rpartition('.')[2]}` | {first_line(module).replace('|', chr(92) + '|')} |")
    return HEAD + "\n".join(line for lines in blocks.values() for line in lines) + "\n"


def first_line(module: Module) -> str:
    return (ast.get_docstring(module.tree) or "").partition("\n")[0]


if __name__ == "__main__":
    text = build_table(read_modules())
    if "--write" in sys.argv:
        TABLE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
