"""The command `hybridflow check`."""

from __future__ import annotations

import time

import typer

from hybridflow.tools.run_options import ConfigFiles, Overrides

EXIT_ERROR = 1
