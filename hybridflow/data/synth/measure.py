"""Characters per token of a model's tokenizer, measured on rows of the long tier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hybridflow.data.synth.spec import generate_row
from hybridflow.errors import ConfigError

if TYPE_CHECKING:
    from hybridflow.data.synth.spec import SynthSpec

NUM_MEASURED = 6
"""Rows that are measured: two of each kind of question. At 60K tokens they differ by less than 0.3%."""


def measure_chars(folder: Path, spec: SynthSpec, seed: int) -> float:
    """Characters that are a token of `folder`/tokenizer.json, in the first rows of `spec`.

    Raises ConfigError where there is no such file, or none that can be read.
    """
    from tokenizers import Tokenizer  # takes a quarter of a second

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigError(f"--tokenizer {folder}: no tokenizer.json there. Remedy: name the folder of a model")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"--tokenizer {folder}: cannot read {file}: {error}. Remedy: copy it again") from error
    texts = [generate_row(spec, "train", seed, index).prompt[0]["content"] for index in range(NUM_MEASURED)]
    num_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    return sum(map(len, texts)) / num_tokens
