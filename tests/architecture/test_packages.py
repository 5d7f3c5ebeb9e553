"""House rules beyond import-linter and ruff: light lower layers, every package in a layer, no catch-all names."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIGHT_PACKAGES = ["errors", "types", "config", "observability", "protocols"]
HEAVY = ["torch", "ray", "zmq", "sglang", "megatron", "transformers", "wandb"]
CATCH_ALL_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "managers"}


def modules_of(package: str) -> list[str]:
    source = ROOT / "hybridflow"
    files = sorted((source / package).rglob("*.py")) if (source / package).is_dir() else [source / f"{package}.py"]
    dotted = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.exists())
    return [name.removesuffix(".__init__") for name in dotted]


@pytest.mark.parametrize("package", LIGHT_PACKAGES)
def test_layer_0_imports_nothing_heavy(package: str) -> None:
    """In a process of its own, where nothing else can have imported them before."""
    modules = modules_of(package)
    assert modules, f"there is no hybridflow.{package}"
    code = (
        f"import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_every_package_stands_in_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = set(re.findall(r"hybridflow\.(\w+)", " ".join(layers)))
    source = ROOT / "hybridflow"
    packages = {path.parent.name for path in source.glob("*/__init__.py")}
    packages |= {path.stem for path in source.glob("*.py") if not path.stem.startswith("__")}
    assert packages <= placed, f"give these a layer in pyproject.toml: {sorted(packages - placed)}"


def test_no_catch_all_names() -> None:
    files = [path for top in ("hybridflow", "megatron_ext", "tests") for path in (ROOT / top).rglob("*.py")]
    named_so = [str(path) for path in files if CATCH_ALL_NAMES & {*path.relative_to(ROOT).with_suffix("").parts}]
    assert not named_so, "name a module after the one thing it does"
