"""Verdicts of the judge on disk, shared by all workers of a machine: a question is paid for once.

SQLite in WAL mode: readers do not wait for a writer, a killed process leaves a database that opens. WAL needs a local
disk; a cache on a network file system is not safe.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from pathlib import Path

from hybridflow.errors import RewardError

BUSY_S = 10.0
"""Longest wait for another process that writes."""

_TABLE = """
CREATE TABLE IF NOT EXISTS verdicts (
    key BLOB PRIMARY KEY,
    is_equal INTEGER NOT NULL CHECK (is_equal IN (0, 1)),
    why TEXT NOT NULL,
    written_at REAL NOT NULL
) WITHOUT ROWID
"""


def build_key(judge: str, question: str, gold: str, prediction: str) -> bytes:
    """SHA-256 over the four, told apart also where one holds what separates them.

    `judge` names all that decides how the others are judged: model, wording and number of votes.
    """
    return hashlib.sha256(json.dumps([judge, question, gold, prediction]).encode()).digest()


class JudgeCache:
    """One database; used from the thread that opens it. Only verdicts that were reached are kept, never an unknown."""

    def __init__(self, path: Path) -> None:
        """Raises RewardError for a file that is no such database or cannot be written."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_TABLE)
        except (sqlite3.Error, OSError) as error:
            raise RewardError(
                f"the judge's cache {path} cannot be opened: {error}. Remedy: name another file in "
                "reward.judge.cache_path, or move this one away"
            ) from error

    def get(self, key: bytes) -> tuple[bool, str] | None:
        """(whether the answers are equal, why), or None where this was never asked."""
        row = self._database.execute("SELECT is_equal, why FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else (bool(row[0]), row[1])

    def put(self, key: bytes, is_equal: bool, why: str) -> None:
        """Keeps a verdict; the first one stays where two processes asked the same."""
        self._database.execute(
            "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)", (key, int(is_equal), why, time.time())
        )

    def close(self) -> None:
        self._database.close()
