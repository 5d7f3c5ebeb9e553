"""The tokenizer of a Hugging Face directory, or what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hybridflow.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.tiktoken")


def load_tokenizer(hf_dir: str | Path, named: str | None = None) -> PreTrainedTokenizerBase:
    """From disk only. ConfigError when it is missing or damaged; `named` is how the user gave the directory.

    Without its files transformers would give a tokenizer that knows no text, or an error about other packages.
    """
    from transformers import AutoTokenizer  # seconds to import

    named = named or f"model.path = {str(hf_dir)!r}"
    missing = f"{named}: no tokenizer files there. Add tokenizer.json"
    if not any(path for pattern in TOKENIZER_FILES for path in Path(hf_dir).glob(pattern)):
        raise ConfigError(missing)
    try:
        tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True)
    except Exception as error:  # each family's tokenizer raises its own
        raise ConfigError(f"{named}: cannot load its tokenizer: {error}. Copy its files again") from error
    if not tokenizer.encode("text", add_special_tokens=False):
        raise ConfigError(missing)
    return tokenizer
