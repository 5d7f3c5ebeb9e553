"""SentencePiece's own reading of tokenizer.model, held against what transformers makes of the file.

transformers 5 takes every such file of a Llama for byte-pair merges, and joins the space that SentencePiece puts in
front to a space that is there. A folder with a tokenizer.json does not come here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECES_FILE = "tokenizer.model"
TEXTS = (
    "Please read the following text and answer the question below. What was the total revenue of the company?",
    "The bond costs 32.4 million dollars, 1234567 in all",
    "  two  spaces\n\nand\tlines \r\n ",
    "債券的票面利率是多少？ 债券",
    "e\u0301 caf\u00e9 n\u0303 \U0001f600 \u0939\u093f\u0928\u094d\u0926\u0940",
    "a , b . it 's <|x|> </x>",
)


def match_pieces(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Makes the tokenizer read spaces as SentencePiece does. ValueError, naming a text, where the tokens differ still.

    A file that is not SentencePiece's is left to the class that reads it.
    """
    import sentencepiece

    pieces: Any = sentencepiece.SentencePieceProcessor()
    try:
        pieces.Load(str(path))
    except RuntimeError:
        return
    if _find_difference(tokenizer, pieces) is None:
        return
    _read_spaces(tokenizer)
    if (text := _find_difference(tokenizer, pieces)) is not None:
        raise ValueError(
            f"{type(tokenizer).__name__} reads {path.name} otherwise than SentencePiece does, {text!r} for one, and "
            "there is no tokenizer.json, which would count: add that of the model's makers"
        )


def _find_difference(tokenizer: PreTrainedTokenizerBase, pieces: Any) -> str | None:
    return next(
        (text for text in TEXTS if tokenizer.encode(text, add_special_tokens=False) != pieces.encode(text)), None
    )


def _read_spaces(tokenizer: PreTrainedTokenizerBase) -> None:
    """As the tokenizer.json of Llama 2: a space in front of each text, and every space a piece's."""
    from tokenizers import normalizers

    backend: Any = tokenizer
    backend.backend_tokenizer.pre_tokenizer = None
    backend.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
