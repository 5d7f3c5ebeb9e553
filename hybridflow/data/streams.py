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

    There is no cursor to save: a run that resumes at a step goes on exactly as one that was never stopped.
    """
    return draw_range(names, count, step * per_step, per_step)


def draw_range(names: tuple[str | int, ...], count: int, first: int, number: int) -> list[int]:
    """Items at places `first`, `first` + 1, ... of an endless walk over `count` items.

    The walk goes through epochs, each a permutation seeded with `names` that has every item once.
    """
    chosen: list[int] = []
    epoch, offset = divmod(first, count)
    while len(chosen) < number:
        order = list(range(count))
        derive_stream(*names, epoch).shuffle(order)
        chosen += order[offset : offset + number - len(chosen)]
        epoch, offset = epoch + 1, 0
    return chosen
