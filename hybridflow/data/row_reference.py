"""Where the prompt of a record comes from: a row of a file, and a hash that tells whether it is still the same."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from hybridflow.data.schema import Row


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
