"""The tokenizer for SGLang, which decodes completions and looks for stop texts by itself.

SGLang loads the class that the model's folder names, and mends some of what transformers does to it. So it is given a
folder in which the loaded tokenizer stands under the class that only reads tokenizer.json, and no code is named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridflow.policy.load import CONFIG_FILE, TOKENIZER_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENGINE_TOKENIZER = "tokenizer"
"""Name of the folder in the engines' model directory. Apart, as beside a config.json its model type chooses a class."""


def write_engine_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, *, with_template: bool = False) -> Path:
    """Writes `folder` and returns it. The chat template is left out for engines that are given token ids."""
    folder.mkdir(parents=True, exist_ok=True)
    backend: Any = tokenizer
    backend.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= tokenizer.special_tokens_map
    if with_template and tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.get_chat_template()
    (folder / CONFIG_FILE).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return folder
