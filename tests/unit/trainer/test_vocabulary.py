"""A tokenizer that has grown beyond the model is refused, with both sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hybridflow.errors import ConfigError
from hybridflow.trainer.layout import check_vocabulary, read_model

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
