"""A tokenizer that has grown beyond the model is refused, with both sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hybridflow.errors import ConfigError
from hybridflow.trainer.layout import check_model_weights, check_vocabulary, read_model

TINY = Path(__file__).parents[3] / "configs/models/tiny"


def test_both_sizes_and_the_token_are_named(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    size = json.loads((TINY / "config.json").read_text())["vocab_size"]
    check_vocabulary(tokenizer, read_model(TINY), "--model x")
    room = size - 1 - max(tokenizer.get_vocab().values())
    tokenizer.add_tokens([f"<new {number}>" for number in range(room)])
    check_vocabulary(tokenizer, read_model(TINY), "--model x")
    tokenizer.add_tokens(["<one more>"])
    with pytest.raises(
        ConfigError, match=rf"--model x: the tokenizer has ids up to {size} \('<one more>'\), .* has {size} entries"
    ):
        check_vocabulary(tokenizer, read_model(TINY), "--model x")


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "<|end|>"}', '{"eos_token_id": [3, null]}'])
def test_generation_settings_that_sglang_would_leave_out(tmp_path: Path, content: str) -> None:
    """It takes a file that it cannot read for none, and a text has no end."""
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    read_model(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"--model x: .*generation_config\.json"):
        read_model(tmp_path / "model", "--model x")


def test_weights_that_are_no_file(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model/model.safetensors").mkdir()
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        check_model_weights(tmp_path / "model", read_model(TINY), "--model x")
