"""Models shared by the distributed tests. One thread per process: two processes already fill a small machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

from tests.dist_cpu.launch import start_server
from tests.dist_cpu.tiny_models import CLASSES, write_model

start_server()


@pytest.fixture(scope="session")
def hf_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directory of each tiny model by name."""
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(name, root) for name in CLASSES}
