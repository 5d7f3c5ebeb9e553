"""SGLang's ranks and processes of one engine, kept from other users: all of them are on one node."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def keep_private(folder: Path) -> None:
    """For the SGLang that this process starts: its ranks meet in a file below `folder`, and its sockets are there.

    To be called before its processes are started. Left to itself, it meets at a port that listens on every interface,
    and its sockets are wherever temporary files are.
    """
    os.environ["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = f"file://{folder / 'ranks'}"
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
