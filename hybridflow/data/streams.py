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


def draw_indices(names: tuple[str | int, ...], count: int, step: int, per_step: int) -> list[int]:
    """Which of `count` items step `step` (from 0) takes, when every step takes `per_step`.

    Steps walk through epochs, each a permutation seeded with `names` that has every item once; a step may span two
    epochs. There is no cursor to save: a run that resumes at a step goes on exactly as one that was never stopped.
    """
    chosen: list[int] = []
    epoch, offset = divmod(step * per_step, count)
    while len(chosen) < per_step:
        order = list(range(count))
        derive_stream(*names, epoch).shuffle(order)
        chosen += order[offset : offset + per_step - len(chosen)]
        epoch, offset = epoch + 1, 0
    return chosen
