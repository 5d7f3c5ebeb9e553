"""Random streams that depend on their names alone, and so are the same in every process and on every machine."""

from __future__ import annotations

import hashlib
import random


def derive_stream(*names: str | int) -> random.Random:
    """An independent generator for these names, for example ("easy", "train", 7, 12).

    Seeded with SHA-256 of the names rather than with `hash`, which differs between processes.
    """
    digest = hashlib.sha256("\x1f".join(str(name) for name in names).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))
