"""Row references: the row of a file that a prompt comes from, a hash of it, and the part that verifiers may want.

The hash tells whether the row is still the same; what a user's own verifier may want travels as text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Set
from typing import NamedTuple

from hybridflow.data.schema import Row


def dump_row(row: Row, wanted: Set[str]) -> str:
    """JSON {"prompt": [...], "extra_info": {...}} with the keys of `wanted`; "" where that is none of them.

    Values that JSON does not have, such as dates in a Parquet file, become their text.
    """
    values = {"prompt": row.prompt, "extra_info": row.extra_info}
    chosen = {key: value for key, value in values.items() if key in wanted}
    return json.dumps(chosen, ensure_ascii=False, default=str) if chosen else ""


class RowReference(NamedTuple):
    """One row."""

    file: str
    """File, folder or pattern, as the configuration names it; below the run folder where rows were generated."""
    row: int
    """From 0, over all its files."""
    sha256: str
    """Hash of the prompt, see `hash_prompt`."""


def hash_prompt(row: Row) -> str:
    """SHA-256 of the contents of the prompt's messages, joined by blank lines, as UTF-8."""
    return hashlib.sha256("\n\n".join(message["content"] for message in row.prompt).encode()).hexdigest()
