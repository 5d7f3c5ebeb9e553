"""The program in the docstring of megatron_ext runs as it stands there."""

from __future__ import annotations

import contextlib
import inspect
import io
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

import megatron_ext
from tests.dist_cpu.launch import start_rank
from tests.dist_cpu.tiny_models import load_model
from tests.ports import free_port

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]


def run_program(rank: int, port: int, hf_dir: str, out_dir: str) -> None:
    """Its function `train`; what it prints goes to a file."""
    start_rank()
    _, _, program = (inspect.getdoc(megatron_ext) or "").partition("transformers.\n")
    names: dict[str, Any] = {"__name__": "program"}
    exec(textwrap.dedent(program), names)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names["train"](rank, port, hf_dir, out_dir)
    Path(out_dir, f"{rank}.txt").write_text(printed.getvalue())


def test_the_program_in_the_docstring_trains_and_saves(hf_dirs: dict[str, Path], tmp_path: Path) -> None:
    given = (free_port(), str(hf_dirs["qwen3_tied"]), str(tmp_path))
    torch.multiprocessing.start_processes(run_program, given, nprocs=2, start_method="forkserver")
    said = [[line.split()[1:] for line in Path(tmp_path, f"{rank}.txt").read_text().splitlines()] for rank in (0, 1)]
    assert said[0] == said[1]
    (first, _), (second, _) = said[0]
    assert float(second) < float(first)
    assert (tmp_path / "checkpoint" / "manifest.json").is_file()
    before, after = (load_model(path).state_dict() for path in (hf_dirs["qwen3_tied"], tmp_path / "hf"))
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
