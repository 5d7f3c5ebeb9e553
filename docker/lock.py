"""Reads and renews docker/requirements-cpu.lock.

    .venv/bin/python docker/lock.py missing     pinned packages that are not installed here at that version
    .venv/bin/python docker/lock.py check       lines that lack hashes
    .venv/bin/python docker/lock.py renew       writes the hashes of every line again; this is `make lock`

A line is `name==version` with the hash of each wheel of that version that Linux x86-64 with glibc 2.34 or later and a
Python of PYTHONS can install. pip's main index names the hashes: renew them where you trust it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOCK = Path(__file__).with_name("requirements-cpu.lock")
PYTHONS = ((3, 11), (3, 12), (3, 13))
GLIBC = (2, 34)
WITHOUT_HASHES = "torch"
"""Each index has a build of its own of the same version; docker/setup_cpu.sh checks it apart."""
PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;\\]+)", re.MULTILINE)
HASH = re.compile(r"\s*--hash=sha256:[0-9a-f]{64}\s*\\?")


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Version of each package of a lock, by the name as it is written there."""
    return dict(PIN.findall(text))


def missing(text: str) -> list[str]:
    """Lines of the lock that this environment does not fulfil; a local suffix (`+cpu`) is as good."""
    have = {normalise(found.metadata["Name"]): found.version.partition("+")[0] for found in distributions()}
    return [f"{name}=={version}" for name, version in pins(text).items() if have.get(normalise(name)) != version]


def unhashed(text: str) -> list[str]:
    """Packages without a hash although they need one."""
    lines = text.splitlines()
    followed = zip(lines, [*lines[1:], ""], strict=True)
    bare = [PIN.match(line) for line, after in followed if not HASH.fullmatch(after) and "--hash" not in line]
    return [found[1] for found in bare if found and found[1] != WITHOUT_HASHES]


def renew(text: str) -> str:
    """The lock with the hashes that the index has now; head, order and pins stay."""
    wanted = {name: version for name, version in pins(text).items() if name != WITHOUT_HASHES}
    known = ask_index(wanted)
    kept = (line for line in text.splitlines() if not HASH.fullmatch(line))
    lines: list[str] = []
    for line in kept:
        found = PIN.match(line)
        if found is None or found[1] not in wanted:
            lines.append(line)
            continue
        hashes = _hashes(found[1], known[normalise(found[1])])
        lines.append(" \\\n".join([found[0], *(f"    --hash={value}" for value in hashes)]))
    return "\n".join(lines) + "\n"


def ask_index(wanted: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    """Wheels of each package, each with "hash" and "url" or "path": uv writes them down for a project of all."""
    lines = ["[project]", 'name = "lock"', 'version = "0"', 'requires-python = ">=3.11,<3.14"', "dependencies = ["]
    lines += [f'"{name}=={version}",' for name, version in wanted.items()] + ["]", "[tool.uv]"]
    lines += ["environments = [\"sys_platform == 'linux' and platform_machine == 'x86_64'\"]"]
    for name, version in wanted.items():  # nothing is resolved: what a package asks for itself is left out
        lines += ["[[tool.uv.dependency-metadata]]", f'name = "{name}"', f'version = "{version}"', "requires-dist = []"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text("\n".join(lines))
        uv = [sys.executable, Path(__file__).with_name("uv_as_pip.py"), "lock", "--quiet", "--python", sys.executable]
        # Extra indexes and folders hold what a site built or kept for itself: another hash, or not each Python's wheel.
        main_index_only = os.environ | {"UV_INDEX": "", "UV_FIND_LINKS": ""}
        subprocess.run([*uv, "--directory", folder], check=True, env=main_index_only)
        locked = tomllib.loads(Path(folder, "uv.lock").read_text())
    return {package["name"]: package.get("wheels", []) for package in locked["package"]}


def _hashes(name: str, wheels: list[dict[str, str]]) -> list[str]:
    """Hashes of wheels that a Python of PYTHONS can install; ends the program where one of them can install none."""
    from packaging.utils import parse_wheel_filename

    names = {wheel["hash"]: unquote(urlsplit(wheel.get("url") or wheel["path"]).path) for wheel in wheels}
    tags = {value: parse_wheel_filename(place.rpartition("/")[2])[3] for value, place in names.items()}
    for python in PYTHONS:
        oldest = set(_tags(python, GLIBC))
        if not any(oldest & of_wheel for of_wheel in tags.values()):
            sys.exit(f"{name}: no wheel for Python {python[0]}.{python[1]} and glibc {GLIBC[0]}.{GLIBC[1]}")
    fitting = {tag for python in PYTHONS for tag in _tags(python, (2, 99))}
    return sorted(value for value, of_wheel in tags.items() if fitting & of_wheel)


def _tags(python: tuple[int, int], glibc: tuple[int, int]) -> Iterator[object]:
    from packaging.tags import compatible_tags, cpython_tags

    minors = range(glibc[1], 4, -1)
    platforms = [f"manylinux_{glibc[0]}_{minor}_x86_64" for minor in minors]
    platforms += [f"{name}_x86_64" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    yield from cpython_tags(python, platforms=platforms)
    yield from compatible_tags(python, f"cp{python[0]}{python[1]}", platforms)


def main(command: str) -> None:
    text = LOCK.read_text(encoding="utf-8")
    if command == "renew":
        LOCK.write_text(renew(text), encoding="utf-8")
        return
    found = missing(text) if command == "missing" else unhashed(text)
    print("".join(f"{line}\n" for line in found), end="")


if __name__ == "__main__":
    main(sys.argv[1])
