"""Records that must be the same in two runs of one seed, however often one of them was stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

OF_THE_MOMENT = ("time/", "perf/", "rollout/events/", "rollout/prefill", "rollout/cached", "rollout/prompt_tokens")
"""Beginnings of the names of metrics that depend on the clock, or count what an engine did again."""
OF_REWARDS = ("reward/mean", "reward/unknown", "reward/parts/")
"""Metrics of rewards that are no count of what was sent again."""
LINES = ("metrics.jsonl", "updates.jsonl", "completions.jsonl")
WEIGHTS = "hf/model.safetensors"


def read_run(folder: Path) -> dict[str, Any]:
    """Records without what depends on the clock, and a checksum of the exported weights."""
    records: dict[str, Any] = {name: [_timeless(line) for line in _lines(folder / name)] for name in LINES}
    return records | {WEIGHTS: hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}


def compare_runs(run: Path, undisturbed: Path) -> list[str]:
    """The differences, in words."""
    mine, right = read_run(run), read_run(undisturbed)
    return [_tell(name, mine[name], right[name]) for name in right if mine[name] != right[name]]


def _tell(name: str, mine: Any, right: Any) -> str:
    if isinstance(mine, str):
        return f"{name} differs"
    if len(mine) != len(right):
        return f"{name} has {len(mine)} lines, not {len(right)}"
    number, one, other = next((n, a, b) for n, (a, b) in enumerate(zip(mine, right, strict=True)) if a != b)
    keys = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
    return f"{name} line {number + 1}: {', '.join(f'{k}: {one.get(k)!r}, not {other.get(k)!r}' for k in sorted(keys))}"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "time" and not _is_of_the_moment(key)}


def _is_of_the_moment(key: str) -> bool:
    return key.startswith(OF_THE_MOMENT) or (key.startswith("reward/") and not key.startswith(OF_REWARDS))
