"""SGLang's own HTTP server as a process: `python -m hybridflow.rollout.http_server '<ServerArgs fields as JSON>'`.

`sglang.launch_server` takes command line options and no fields; the fields are what `cpu_platform` gives.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from hybridflow.private_folder import PrivateFolder
from hybridflow.rollout.private_ranks import keep_private


def main(arguments: str) -> None:
    """Serves until SIGTERM or SIGINT, and leaves no process behind."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with PrivateFolder() as folder:
        keep_private(folder.path)
        _serve(json.loads(arguments))


def _serve(fields: dict[str, Any]) -> None:
    import torch

    from hybridflow.rollout.cpu_platform.process_server import start_server

    if not torch.cuda.is_available():
        start_server()
    from sglang.srt.plugins import load_plugins

    load_plugins()  # before ServerArgs: a plugin may change it
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils import kill_process_tree

    try:
        launch_server(ServerArgs(**fields))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main(sys.argv[1])
