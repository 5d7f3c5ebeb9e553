"""`hybridflow judge serve` with something wrong: one message, exit code 1, nothing started."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from tests.unit.tools.conftest import Refuse


def test_judge_serve_wants_a_model(refuse: Refuse, tmp_path: Path) -> None:
    message = refuse("judge", "serve", "--model", tmp_path, "--port", 31999)
    assert f"--model {tmp_path}: no config.json with safetensors there. Remedy:" in message


def test_judge_serve_wants_a_free_port(refuse: Refuse, models: dict[str, Path], tmp_path: Path) -> None:
    model = shutil.copytree(models["qwen3_tied"], tmp_path / "model")
    (model / "tokenizer_config.json").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refuse("judge", "serve", "--model", model, "--port", port)
    assert f"--port {port}: cannot listen there" in message and "Remedy: name a free port" in message
