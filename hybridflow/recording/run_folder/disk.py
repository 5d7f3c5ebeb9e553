"""A disk that is full, or a quota that is used up, told as such wherever it stopped a run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hybridflow.errors import DiskFullError, HybridFlowError, WorkerError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEXTS = tuple(os.strerror(number) for number in FULL)
"""How it shows in what a worker or a library says."""
MIB = 2**20
LEAST_BYTES = MIB


RESUME = "go on with --resume; nothing that was saved is lost"


def explain_full(error: BaseException, folder: Path, then: str = RESUME) -> DiskFullError | None:
    """The error for the user where a full disk is behind `error`; `folder` is on it. None where it is not.

    `then`: what to do when there is room again.
    """
    behind = [one for one in _chain(error) if _tells_full(one)]
    if not behind and not (isinstance(error, WorkerError) and is_full(folder)):
        return None
    # What came first; what closes files on the way up fails for the same reason.
    first = next((one for one in reversed(behind) if _names_file(one)), behind[-1] if behind else error)
    what = str(first) if isinstance(first, HybridFlowError) else _describe(first, folder)
    there = _existing(folder)
    usage = shutil.disk_usage(there)
    return DiskFullError(
        f"{what}\nThe disk of {there} has {usage.free / MIB:.1f} MiB free of {usage.total / MIB:.0f} MiB. Remedy: make "
        f"room there (or raise the quota, or ulimit -f), and {then}"
    )


def is_full(folder: Path) -> bool:
    """Whether next to nothing is free: libraries of workers tell a write that failed in words of their own."""
    return shutil.disk_usage(_existing(folder)).free < LEAST_BYTES


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _tells_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in FULL:
        return True
    if any(f"(os error {number})" in str(error) for number in FULL):  # as libraries in Rust say it
        return True
    return isinstance(error, HybridFlowError) and any(text in str(error) for text in TEXTS)


def _names_file(error: BaseException) -> bool:
    return isinstance(error, HybridFlowError) or getattr(error, "filename", None) is not None


def _describe(error: BaseException, folder: Path) -> str:
    path = getattr(error, "filename", None) or f"a file of {folder}"
    return f"cannot write {path}: {getattr(error, 'strerror', None) or error}"
