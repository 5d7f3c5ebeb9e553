"""SGLang's own HTTP server as a process, behind a gate: `python -m hybridflow.rollout.http_server`, told on its input.

The input is JSON: `{"arguments": {ServerArgs fields}, "key": "..."}`. Not on the command line, which every user of the
machine can read. `sglang.launch_server` takes command line options and no fields; the fields are what `cpu_platform`
gives.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from typing import Any

from hybridflow.rollout.http_gate import HttpGate
from hybridflow.rollout.signed_broadcast import check_signed


def main(arguments: dict[str, Any], key: str) -> None:
    """Serves until SIGTERM or SIGINT, and leaves no process behind."""
    import torch

    from hybridflow.rollout.cpu_platform.process_server import start_server

    if not torch.cuda.is_available():
        start_server()
    from sglang.srt.plugins import load_plugins

    load_plugins()  # before ServerArgs: a plugin may change it
    check_signed()
    from sglang.srt.entrypoints.http_server import app, launch_server
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import kill_process_tree

    own_key = secrets.token_urlsafe(32)
    app.add_middleware(HttpGate, key=key, own_key=own_key)
    try:
        launch_server(ServerArgs(**arguments, admin_api_key=own_key))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main(**json.load(sys.stdin))
