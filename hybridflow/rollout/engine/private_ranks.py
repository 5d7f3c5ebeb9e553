"""SGLang's ranks and processes of one engine, kept from other users: all of them are on one node.

They meet in a file of a folder that nobody else may enter. What connects them then are gloo's ports, on the loopback
where Ray is; gloo knows no credentials, and SGLang unpickles what it gets there. So ranks sign each object that they
send (`signed_broadcast`), with a key that is in the same folder.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from hybridflow.compiled_kernels import kept_in
from hybridflow.private_folder import write_secret

KEY_FILE = "HYBRIDFLOW_RANK_SIGNATURES"
"""Variable of SGLang's processes: path of the file with the key of their engine."""


def rank_environment(folder: Path) -> dict[str, str]:
    """Environment of the process that starts SGLang and all below it; makes its key in `folder`, a private one.

    Left to itself, SGLang meets at a port that listens on every interface, and its sockets are wherever temporary files
    are.
    """
    key = folder / "ranks.key"
    write_secret(key, secrets.token_hex(32))
    return {
        "SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE": f"file://{folder / 'ranks'}",
        "TMPDIR": str(folder),
        KEY_FILE: str(key),
        **kept_in(folder),
    }


def keep_private(folder: Path) -> None:
    """Gives the SGLang that this process starts a private folder; to be called before its processes are started."""
    os.environ.update(rank_environment(folder))
    tempfile.tempdir = str(folder)
