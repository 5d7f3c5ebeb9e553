"""JSON files of a checkpoint or a model: read within bounds, as whoever wrote them may be a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 256 * 2**20
"""An index of 100,000 tensors has about 10 MiB."""
MAX_DIGITS = 1000


def read_json(path: Path) -> Any:
    """The value. ValueError, saying what is wrong, for what is broken, too large, too deep, or has too long a number.

    OSError when the file system refuses.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    try:
        return json.loads(content.decode("utf-8-sig"), parse_int=_whole_number)
    except RecursionError:
        raise ValueError("its lists and objects are too deep within one another") from None


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)
