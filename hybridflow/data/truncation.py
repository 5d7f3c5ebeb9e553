"""Middle truncation: the document of a prompt loses its middle until the prompt fits.

The first and the last half of the document's allowed tokens stay. Source: the evaluation of QwenLong-L1 (recipe section
7), which keeps both halves of the whole prompt; here template and question stay whole, wherever they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.data.chat_template import Message
from hybridflow.data.schema import Row
from hybridflow.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPENING, CLOSING = "<text>", "</text>"
"""The document stands between them, in the template of the recipe."""


def truncate_middle(tokenizer: PreTrainedTokenizerBase, row: Row, max_prompt_tokens: int) -> tuple[Row, list[int]]:
    """`row` with its longest document cut in the middle, and the token ids of its prompt, at most `max_prompt_tokens`.

    Raises DataError where no document is marked, or all else is too long already.
    """
    index, start, end = _find_document(row.prompt)
    content = row.prompt[index]["content"]
    before, document, after = content[:start], content[start:end], content[end:]
    spans = _token_spans(tokenizer, document)

    def cut(num_tokens: int) -> tuple[Row, list[int]]:
        kept = _keep_ends(document, spans, num_tokens)
        message: Message = {"role": row.prompt[index]["role"], "content": f"{before}{kept}{after}"}
        shorter = msgspec.structs.replace(row, prompt=[*row.prompt[:index], message, *row.prompt[index + 1 :]])
        return shorter, encode_chat(tokenizer, shorter.prompt)

    around = len(cut(0)[1])
    room = min(max_prompt_tokens - around, len(spans))
    while room > 0:  # once as a rule: where halves meet, tokens may merge otherwise than in the whole
        shorter, token_ids = cut(room)
        if len(token_ids) <= max_prompt_tokens:
            return shorter, token_ids
        room -= len(token_ids) - max_prompt_tokens
    raise DataError(
        f"the prompt has {around} tokens without its document, and the limit max_prompt_tokens is {max_prompt_tokens}: "
        'there is nothing to cut. Remedy: raise the limit, or leave such rows out with overlong = "drop"'
    )


def _find_document(prompt: Sequence[Message]) -> tuple[int, int, int]:
    """Message, begin and end of the longest marked document; line ends beside the marks are the template's."""
    found: list[tuple[int, int, int]] = []
    for index, message in enumerate(prompt):
        start = message["content"].find(OPENING)
        end = message["content"].rfind(CLOSING)
        if message["role"] == "user" and 0 <= start < end:
            document = message["content"][start + len(OPENING) : end]
            first, last = len(document) - len(document.lstrip("\n")), len(document.rstrip("\n"))
            found.append((index, start + len(OPENING) + first, start + len(OPENING) + max(first, last)))
    if not found:
        raise DataError(
            f"the prompt is too long, and no user message has a document between {OPENING} and {CLOSING} whose middle "
            "could be cut. Remedy: mark the document so (`hybridflow data convert` does), raise the limit "
            'max_prompt_tokens, or leave such rows out with overlong = "drop"'
        )
    return max(found, key=lambda place: place[2] - place[1])


def _token_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Begin and end of each token, in characters."""
    backend: Any = tokenizer
    return backend.backend_tokenizer.encode(text, add_special_tokens=False).offsets


def _keep_ends(document: str, spans: Sequence[tuple[int, int]], num_tokens: int) -> str:
    """The first half of `num_tokens` tokens, the larger one, and the last half."""
    if num_tokens >= len(spans):
        return document
    first, last = num_tokens - num_tokens // 2, num_tokens // 2
    head = document[: spans[first - 1][1]] if first else ""
    return head + (document[spans[-last][0] :] if last else "")
