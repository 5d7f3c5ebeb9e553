"""Whether there is CUDA is asked in one place; who needs to know is told."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ASKED_IN = Path("megatron_ext/platform/device.py")
QUESTIONS = ("is_available", "device_count", "is_initialized")


def test_torch_is_asked_for_cuda_in_one_place() -> None:
    asked = [
        path.relative_to(ROOT)
        for top in ("hybridflow", "megatron_ext")
        for path in sorted((ROOT / top).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in QUESTIONS and ast.unparse(node.value) == "torch.cuda"
    ]
    assert asked == [ASKED_IN], "give what needs to know a Device; the process asks once, where it begins"
