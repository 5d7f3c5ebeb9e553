"""Tables of a run for people and spreadsheets: CSV, of which a reader sees the old one or the new one whole."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridflow.recording.step_lines import writing


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes `rows`, which have the same keys, below a line with their names; nothing where there is no row.

    OSErrors of a write name the file.
    """
    if not rows:
        return
    unfinished = path.with_name(f".{path.name}.unfinished")
    with writing(path):
        try:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
