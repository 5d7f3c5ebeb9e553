"""No code of a model's folder is run, and nobody is asked whether to."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from hybridflow.config.rollout_section import RolloutSection
from hybridflow.errors import ConfigError
from hybridflow.policy.engine_tokenizer import write_engine_tokenizer
from hybridflow.policy.init import write_policy
from hybridflow.policy.load import load_tokenizer
from hybridflow.rollout.engine.arguments import build_arguments
from hybridflow.tools.judge_serve import JudgeServerJob, build_server_arguments
from megatron_ext.hf.config import read_hf_config
from megatron_ext.platform.device import CPU

ROOT = Path(__file__).parents[2]
LOADERS = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "PreTrainedTokenizerFast")


def test_every_loader_of_transformers_is_told_not_to() -> None:
    found = 0
    for path in [*ROOT.glob("hybridflow/**/*.py"), *ROOT.glob("megatron_ext/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            loads = node.func.attr in ("from_pretrained", "from_config") and ast.unparse(node.func.value) in LOADERS
            if loads:
                found += 1
                said = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert said.get("trust_remote_code") == "False", f"{path}, line {node.lineno}"
    assert found >= 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model, naming code of its own wherever a folder can; running it, or asking, ends the test."""

    def refuse(*_: object) -> str:
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", refuse)
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", "own.Own"]}
    for source in (ROOT / "configs/models/tiny").iterdir():
        content = source.read_bytes()
        if source.name in ("config.json", "tokenizer_config.json"):
            content = json.dumps(json.loads(content) | {"auto_map": own}).encode()
        (tmp_path / source.name).write_bytes(content)
    (tmp_path / "own.py").write_text("raise SystemExit('code of the folder ran')\n")
    return tmp_path


def test_a_folder_that_names_code_is_read_without_it(folder: Path, tmp_path: Path) -> None:
    assert read_hf_config(folder).vocab_size == 1024
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("What is the rate?")) == "What is the rate?"
    write_policy(folder, tmp_path / "drawn", seed=0)
    for_sglang = write_engine_tokenizer(tokenizer, tmp_path / "engine", with_template=True)
    assert all("auto_map" not in path.read_text(encoding="utf-8") for path in for_sglang.iterdir())


def test_a_tokenizer_that_is_code_alone_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    (folder / "vocab.own").write_text("")
    with pytest.raises(ConfigError, match=r"it is code of the folder .* which is not run"):
        load_tokenizer(folder)


def test_sglang_is_told_not_to_and_cannot_be_told_otherwise() -> None:
    assert build_arguments(RolloutSection(), dtype="float32", seed=0)["trust_remote_code"] is False
    assert build_server_arguments(JudgeServerJob(model=Path("m"), port=1), CPU)["trust_remote_code"] is False
    with pytest.raises(ConfigError, match=r"rollout\.sglang\.trust_remote_code = true: code of a model's folder"):
        build_arguments(RolloutSection(sglang={"trust_remote_code": True}), dtype="float32", seed=0)
