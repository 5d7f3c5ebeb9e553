"""Encodes the messages of a conversation as token ids."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hybridflow.data.chat_template import Message, render_whole
from hybridflow.data.marks import Marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_marks: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, Marks]] = weakref.WeakKeyDictionary()


def encode_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation.

    With a chat template, it alone decides about special tokens, so none is added twice. Without one, the ids are
    those of the plain contents joined by blank lines, with the special tokens that the tokenizer adds by itself. No
    content becomes a special token, whatever it spells (`marks`). Raises DataError or ConfigError, see `render_whole`.
    """
    marks = marks_of(tokenizer)
    visible, hidden = marks.hide(messages)
    if tokenizer.chat_template is None:
        text = "\n\n".join(message["content"] for message in visible)
        return marks.encode(text, hidden, add_special_tokens=True)
    return marks.encode(render_whole(tokenizer, visible, add_generation_prompt), hidden)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text as it stands, with the special tokens that the tokenizer adds by itself.

    What spells a special token in it is one: such texts are prompts that were rendered before.
    """
    backend: Any = tokenizer
    return backend.backend_tokenizer.encode_batch_fast([text], add_special_tokens=True)[0].ids


def marks_of(tokenizer: PreTrainedTokenizerBase) -> Marks:
    """The marks of a tokenizer under its present chat template; found once."""
    template, marks = _marks.get(tokenizer, (None, None))
    if marks is None or template != tokenizer.chat_template:
        marks = Marks(tokenizer)
        _marks[tokenizer] = (tokenizer.chat_template, marks)
    return marks
