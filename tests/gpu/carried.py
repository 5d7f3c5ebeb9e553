"""Packages that the checks need beside torch, transformers and triton; as a program it prints name==version of each.

python -m tests.gpu.carried              for a package index; versions are those of docker/requirements-cpu.lock
python -m tests.gpu.carried FOLDER       the wheels in a folder: all of them, and below 64 MiB together
"""

from __future__ import annotations

import sys
from pathlib import Path

LOCK = Path(__file__).parents[2] / "docker/requirements-cpu.lock"
CARRIED = ("megatron-core", "msgspec")
MAX_BYTES = 64 * 2**20


def requirements() -> list[str]:
    """name==version of each."""
    pinned = {line.split("==")[0]: line.split()[0] for line in LOCK.read_text().splitlines() if "==" in line}
    return [pinned[name] for name in CARRIED]


def check_wheels(folder: Path) -> str:
    """A line that says what is there. Raises SystemExit for one that is missing, or for too much."""
    files = {path.name: path.stat().st_size for path in folder.glob("*.whl")}
    for requirement in requirements():
        name, version = requirement.split("==")
        if not any(file.startswith(f"{name.replace('-', '_')}-{version}-") for file in files):
            raise SystemExit(f"{folder} has no wheel of {requirement}: tests/gpu/run.sh --fetch")
    size = sum(files.values())
    if size >= MAX_BYTES:
        raise SystemExit(f"the wheels in {folder} have {size:,} bytes together, the limit is {MAX_BYTES:,}")
    return f"{len(files)} wheels, {size / 2**20:.1f} MiB: {', '.join(sorted(files))}"


if __name__ == "__main__":
    print(check_wheels(Path(sys.argv[1])) if len(sys.argv) > 1 else "\n".join(requirements()))
