"""Verdicts of the judge on disk, shared by all workers of a machine: a question is paid for once.

SQLite in WAL mode: readers do not wait for a writer, a killed process leaves a database that opens. WAL needs a local
disk; a cache on a network file system is not safe.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybridflow.errors import RewardError
from hybridflow.rewards.judge_vote import Vote

BUSY_S = 3.0
"""Longest wait for another process that writes; a verdict is written in milliseconds."""

_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY,
    vote TEXT NOT NULL CHECK (vote IN ('yes', 'no')),
    why TEXT NOT NULL,
    written_at REAL NOT NULL
) WITHOUT ROWID
"""


class JudgeCache:
    """One database; used by one thread at a time. Only verdicts that were reached are kept, never an unknown."""

    def __init__(self, path: Path) -> None:
        """Raises RewardError for a file that is no such database, is locked, or cannot be written."""
        self._path = path
        with self._named("be opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_TABLE)

    def get(self, key: str) -> tuple[Vote, str] | None:
        """(vote, why) under a key of `compute_cache_key`, or None where this was never decided.

        Raises RewardError where it cannot be read within BUSY_S.
        """
        with self._named("be read"):
            return self._database.execute("SELECT vote, why FROM verdicts WHERE key = ?", (key,)).fetchone()

    def put(self, key: str, vote: Vote, why: str) -> None:
        """Keeps a vote, yes or no; the first one stays where two processes asked the same.

        Raises RewardError where it cannot be written within BUSY_S: locked, full, or not allowed.
        """
        with self._named("be written"):
            self._database.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", (key, vote, why, time.time()))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Names the file in whatever goes wrong with it."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise RewardError(
                f"the judge's cache {self._path} cannot {what}: {error}. Remedy: end what else uses it, make room on "
                "its disk, or name another file in reward.judge.cache_path"
            ) from error
