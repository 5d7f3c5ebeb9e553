"""The `hybridflow` command from its first line on: Ctrl-C is told as such also while its code is being loaded."""

from __future__ import annotations

import sys
from typing import NoReturn


def run() -> NoReturn:
    """Entry point of the installed command, and of `python -m hybridflow`."""
    try:
        from hybridflow.cli import guarded_main  # with what it imports, most of a second

        guarded_main()
    except KeyboardInterrupt:  # a command that has begun tells its own
        print("interrupted; nothing was started", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
