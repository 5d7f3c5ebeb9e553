"""The extra `gpu` asks for the versions that Megatron-Core and SGLang ask for, as their installed metadata say."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
EXTRAS = {"megatron-core": ("dev",), "sglang": ("", "ray")}
"""Extras of which requirements count; "": what they always need."""


def read_extra() -> dict[str, Requirement]:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["gpu"]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines)}


def named_by(package: str) -> dict[str, Requirement]:
    """Requirements of a package that hold in one of its EXTRAS; bounds are left out if it has none."""
    found = {}
    for line in importlib.metadata.requires(package) or []:
        named = Requirement(line)
        if any(named.marker is None or named.marker.evaluate({"extra": extra}) for extra in EXTRAS[package]):
            found[canonicalize_name(named.name)] = named
    return {name: named for name, named in found.items() if named.specifier}


def test_both_are_the_versions_that_are_tested() -> None:
    extra = read_extra()
    for package in EXTRAS:
        assert str(extra[package].specifier) == f"=={importlib.metadata.version(package)}"


def test_ranges_are_theirs() -> None:
    extra, compared = read_extra(), set()
    for package in EXTRAS:
        for name, named in named_by(package).items():
            if name in extra and not (package == "megatron-core" and name in named_by("sglang")):
                assert extra[name].specifier == named.specifier, (package, name)
                assert named.extras <= extra[name].extras, (package, name)
                compared.add(name)
    assert compared == {"ray", "torch", "transformer-engine", "transformers"}


def test_one_version_suits_both_and_the_project_itself() -> None:
    """SGLang pins torch; Megatron and the project must take that."""
    extra, pinned = read_extra(), named_by("sglang")
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in ("torch", "transformers"):
        (version,) = (clause.version for clause in pinned[name].specifier)
        others = [found for found in map(Requirement, lines) if found.name == name]
        others += map(Requirement, importlib.metadata.requires("megatron-core") or [])
        for other in others:
            if canonicalize_name(other.name) == name:
                assert other.specifier.contains(version), other
        assert extra[name].specifier.contains(version)
    assert "apex" not in extra
