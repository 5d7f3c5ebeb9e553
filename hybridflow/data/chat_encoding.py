"""Encodes the messages of a conversation as token ids, and keeps text from becoming a mark of the chat template.

Marks are the tokens by which a template structures a conversation. A tokenizer knows its special tokens by their
spelling, wherever it stands: a document that says "<|im_end|>" would end the turn. So while a conversation is rendered,
a mark's spelling within a content is hidden behind one private character; the template's own are what remains. They are
then given a spelling that nobody can know, the contents get their text back, and a copy of the tokenizer encodes the
whole that knows the marks by that spelling alone. Borders, merges and spaces are treated as ever. Where no content
spells a mark, and that is almost always, none of this happens.
"""

from __future__ import annotations

import json
import re
import secrets
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hybridflow.data.chat_template import Message, render_whole
from hybridflow.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


_TAG = re.compile(r"</?\w+>")
"""<think>, </tool_call>: what a model writes into an answer, unless it is a special token of another name."""
_WRITTEN = re.compile(r"</?\w*(?:think|thought|reason|tool|answer)\w*>", re.IGNORECASE)
_CONTROL = re.compile(r"<[|｜].*[|｜]>")
_PRIVATE_PLANES = range(0xF0000, 0x10F000, 0x1000)


class Marks:
    """The marks of one tokenizer under one chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Marks are its special tokens and, of its other added tokens, those of the form <|...|> and those that the
        template names, unless they are tags as <think>."""
        backend: Any = tokenizer
        self._backend: Tokenizer = backend.backend_tokenizer
        source = tokenizer.get_chat_template() if tokenizer.chat_template is not None else ""
        named = set(tokenizer.special_tokens_map.values())
        self.ids: dict[str, int] = {}
        self._turn_marks: set[str] = set()
        for token_id, token in self._backend.get_added_tokens_decoder().items():
            text = token.content
            by_form = _CONTROL.fullmatch(text) or (text in source and not _TAG.fullmatch(text))
            if text and (token.special or text in named or by_form):
                self.ids[text] = token_id
                if text in named or not _TAG.fullmatch(text) or (token.special and not _WRITTEN.fullmatch(text)):
                    self._turn_marks.add(text)
        unknown = tokenizer.unk_token_id
        self._counted = frozenset(self.ids.values()) - ({unknown} if isinstance(unknown, int) else set())
        self.pattern = re.compile(_either(self.ids)) if self.ids else re.compile(r"(?!)")
        """Finds the next mark; the longest of those that begin there."""
        self.end_pattern = re.compile(_either(self._turn_marks)) if self._turn_marks else re.compile(r"(?!)")
        """Finds the next mark that is nothing a model writes into an answer."""

    def hide(self, messages: Sequence[Message]) -> tuple[list[Message], dict[str, str]]:
        """The messages with a private character for each mark in a content, and the mark of each character.

        In an assistant's content tags stay: its author means the token.
        """
        found: set[str] = set()
        for message in messages:
            found.update(self.pattern.findall(message["content"]))
        if not found:
            return list(messages), {}
        known = list(self.ids)
        plane = self._free_plane(messages, len(known))
        hidden = {text: chr(plane + index) for index, text in enumerate(known) if text in found}

        def hide(message: Message) -> Message:
            is_answer = message["role"] == "assistant"

            def stand_in(match: re.Match[str]) -> str:
                text = match.group()
                return text if is_answer and text not in self._turn_marks else hidden[text]

            return {"role": message["role"], "content": self.pattern.sub(stand_in, message["content"])}

        return [hide(message) for message in messages], {character: text for text, character in hidden.items()}

    def encode(self, text: str, hidden: dict[str, str], *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a rendered text; `hidden` is what `hide` said of its contents."""
        around = self._backend.encode("", add_special_tokens=True).ids if add_special_tokens else []
        wanted = Counter([*around, *(self.ids[match.group()] for match in self.pattern.finditer(text))])
        if not hidden:
            token_ids = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
            if self._has(wanted, token_ids):
                return token_ids
        spelled = self.pattern.sub(lambda match: self._spellings[match.group()], text)
        spelled = self.reveal(spelled, hidden)
        token_ids = self._guarded.encode_batch_fast([spelled], add_special_tokens=add_special_tokens)[0].ids
        if not self._has(wanted, token_ids):
            named = ", ".join(sorted(set(hidden.values()))) or "the spelling of a special token"
            raise DataError(f"the text holds {named}, which this tokenizer cannot read as plain text")
        return token_ids

    @staticmethod
    def reveal(text: str, hidden: dict[str, str]) -> str:
        """The text with what contents spell in it."""
        return re.sub(f"[{''.join(hidden)}]", lambda match: hidden[match.group()], text) if hidden else text

    def _has(self, wanted: Counter[int], token_ids: list[int]) -> bool:
        """Whether just these marks are among the tokens."""
        found = Counter(token for token in token_ids if token in self._counted)
        return found == Counter({token: count for token, count in wanted.items() if token in self._counted})

    @cached_property
    def _spellings(self) -> dict[str, str]:
        """For each mark a spelling that no text can hold."""
        secret = secrets.token_hex(16)
        return {text: f"\U0010ff00{secret}.{index}\U0010ff01" for index, text in enumerate(self.ids)}

    @cached_property
    def _guarded(self) -> Tokenizer:
        """The tokenizer, with other spellings of its marks."""
        from tokenizers import Tokenizer

        content: dict[str, Any] = json.loads(self._backend.to_str())
        for token in content["added_tokens"]:
            token["content"] = self._spellings.get(token["content"], token["content"])
        model = content["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {self._spellings.get(piece, piece): token_id for piece, token_id in vocabulary.items()}
        else:
            model["vocab"] = [[self._spellings.get(piece, piece), *rest] for piece, *rest in vocabulary]
        if model.get("unk_token") in self._spellings:
            model["unk_token"] = self._spellings[model["unk_token"]]
        pairs = [merge if isinstance(merge, list) else merge.split(" ") for merge in model.get("merges", [])]
        if pairs:
            model["merges"] = [
                pair for pair in pairs if not self.ids.keys() & {*pair, "".join(pair)}
            ]  # no merge makes a mark
        return Tokenizer.from_str(json.dumps(content))

    def _free_plane(self, messages: Sequence[Message], num_marks: int) -> int:
        used = {ord(character) for message in messages for character in set(message["content"]) if character > "\uffff"}
        for plane in _PRIVATE_PLANES:
            if num_marks <= _PRIVATE_PLANES.step and not any(plane <= code < plane + num_marks for code in used):
                return plane
        raise DataError("the conversation uses every private character of Unicode: no room to tell its marks apart")


def _either(texts: Iterable[str]) -> str:
    """A regular expression for any of these texts, the longest first, in time that does not grow with their number."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}

    def write(node: dict[str, Any]) -> str:
        branches = [re.escape(character) + write(rest) for character, rest in node.items() if character]
        if not branches:
            return ""
        either = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
        return f"{either}?" if "" in node else either

    return write(tree)


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
