"""Conversations as training sequences: which tokens the model reads, and which it learns to write.

The response to learn is what a model has to write, after the generation prompt, to have given an answer. Chat
templates of reasoning models do not write an answer back as the model gave it: they drop the thinking of earlier
turns, and some open `<think>` in the generation prompt alone. So the response to learn is not what the template makes
of the conversation, unless that continues the generation prompt with all of the answer; else it is the answer as
given, continued from where the generation prompt stops, with the end that the template puts behind answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybridflow.data.chat_encoding import Marks, marks_of
from hybridflow.data.chat_template import Message, render_whole
from hybridflow.errors import DataError
from hybridflow.types import TokenColumns, TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Render = Callable[[Sequence[Message], bool], str]
"""Text of messages, with the generation prompt or without."""

_OPENED = re.compile(r"<(?P<name>\w*(?:think|thought|reason)\w*)>(?P<space>\s*)\Z")
_CLOSED = re.compile(r"</(?P<name>\w*(?:think|thought|reason)\w*)>\s*\Z")
_PROBE = "Answerprobe7f3a9c"
"""Stands for an answer where the template is asked what it puts behind one."""
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Turn:
    """One answer of a conversation."""

    prompt: str
    """Text that the model reads before it: all earlier messages, and the generation prompt."""
    response: str
    """Text that it has to write, through the mark that ends the turn."""
    rest: str
    """Text that the template puts behind that mark; nobody writes it."""
    closes_empty_thought: bool = False
    """The answer has no thinking, and the generation prompt had opened it."""
    has_end: bool = True
    """The template puts a mark behind it, at which an engine can stop."""


def write_turn(render: Render, end_mark: re.Pattern[str], messages: Sequence[Message]) -> Turn:
    """The turn of the last message, an assistant's. `end_mark` finds a mark that can end a turn.

    Raises DataError where the answer cannot follow the generation prompt.
    """
    before, answer = list(messages[:-1]), messages[-1]["content"]
    if not answer.strip():
        raise DataError("the answer is empty")
    prompt = render(before, True)
    suffix = _suffix(render, before)
    end = end_mark.search(suffix)
    cut = end.end() if end else len(suffix)
    through = render(messages, False)
    body, closes = None, False
    if through.startswith(prompt) and through.endswith(suffix) and len(through) >= len(prompt) + len(suffix):
        body = _continued(prompt, through[len(prompt) : len(through) - len(suffix)], answer)
    if body is None:
        body, closes = _continue(prompt, answer)
    return Turn(prompt, body + suffix[:cut], suffix[cut:], closes, has_end=end is not None)


def _suffix(render: Render, before: list[Message]) -> str:
    """The text that the template puts behind an answer."""
    probed = render([*before, {"role": "assistant", "content": _PROBE}], False)
    _, found, suffix = probed.rpartition(_PROBE)
    if not found:
        raise DataError("the chat template does not write what an assistant says")
    return suffix


def _continued(prompt: str, body: str, answer: str) -> str | None:
    """`body`, which the template wrote behind the prompt, if it has all of the answer in the state the prompt left."""
    opened = _OPENED.search(prompt)
    written = body
    if opened:
        tag = opened["name"]
        if body.lstrip().startswith(f"<{tag}>") or f"</{tag}>" not in body:
            return None
        written = f"<{tag}>{body}"
    return body if _SPACE.sub("", written).endswith(_SPACE.sub("", answer)) else None


def _continue(prompt: str, answer: str) -> tuple[str, bool]:
    """The answer as it follows the prompt, and whether a thought that the prompt had opened was closed empty."""
    opened, closed = _OPENED.search(prompt), _CLOSED.search(prompt)
    if closed and f"</{closed['name']}>" in answer:
        raise DataError(
            f"the answer thinks in <{closed['name']}>, and the generation prompt of the chat template has closed that "
            "before it. Use a template that leaves it open, or answers without thinking"
        )
    if not opened:
        return answer, False
    tag, space = opened["name"], opened["space"]
    if answer.lstrip().startswith(f"<{tag}>"):
        if f"</{tag}>" not in answer:
            raise DataError(f"the answer opens <{tag}> and never closes it")
        return answer.lstrip().removeprefix(f"<{tag}>").removeprefix(space), False
    if f"</{tag}>" in answer:  # the thinking was opened by the prompt that it was written after
        return answer, False
    gap = "\n\n".removeprefix(space) if space in ("", "\n", "\n\n") else ""
    return f"{gap}</{tag}>\n\n{answer.lstrip()}", True


@dataclass(frozen=True)
class Segment:
    """A part of a conversation that is learnt as a whole, or only read."""

    text: str
    token_ids: list[int]
    is_learnt: bool


@dataclass(frozen=True)
class SplitConversation:
    """A conversation as it is trained on."""

    segments: list[Segment]
    num_empty_thoughts: int
    """Answers without thinking after a generation prompt that opens it: it is closed empty, and that is learnt."""
    num_context_answers: int
    """Answers that are only read, as the template writes them differently once later messages follow."""
    num_endless_answers: int = 0
    """Learnt answers behind which the template puts no mark, so that a model does not learn to stop."""


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], sequence_id: str = "conversation"
) -> TrainSequence:
    """One conversation as a row of supervised training, see `split_conversation`.

    The prompt ends with the first generation prompt after which something is learnt; all the rest is the response. The
    loss mask is 1 exactly on what the model has to write: its answers, and the end token that closes each.
    """
    return build_sequence(split_conversation(tokenizer, messages, sequence_id), sequence_id)


def build_sequence(conversation: SplitConversation, sequence_id: str) -> TrainSequence:
    """The row of training."""
    token_ids = [token for segment in conversation.segments for token in segment.token_ids]
    mask = [int(segment.is_learnt) for segment in conversation.segments for _ in segment.token_ids]
    prompt_length = mask.index(1)
    return TrainSequence(
        sequence_id=sequence_id,
        prompt_token_ids=token_ids[:prompt_length],
        response=TokenColumns(ids=token_ids[prompt_length:]),
        loss_mask=mask[prompt_length:],
    )


def split_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], sequence_id: str = "conversation"
) -> SplitConversation:
    """Split a conversation into what is read and what is learnt, in order.

    The last answer is always learnt. An earlier one is where the last answer's prompt begins with it, word for word, as
    the model would have written it; templates that drop the thinking of earlier turns change them, and then no one
    sequence stands for all turns. Text and tokens before each learnt segment are those that the model is given when it
    writes that answer.

    Raises DataError when the conversation does not begin with a user message and end with an assistant's, when the
    template refuses it, or when an answer cannot follow its generation prompt.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or turns[0] == 0 or turns[-1] != len(messages) - 1:
        roles = [message["role"] for message in messages]
        raise DataError(f"{sequence_id}: a conversation goes from a user message to an assistant's; got roles {roles}")
    if tokenizer.chat_template is None:
        raise DataError(f"{sequence_id}: the tokenizer has no chat template, so turns cannot be told apart; set one")
    marks = marks_of(tokenizer)
    visible, hidden = marks.hide(messages)

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return render_whole(tokenizer, messages, add_generation_prompt)

    try:
        written = [write_turn(render, marks.end_pattern, visible[: turn + 1]) for turn in turns]
        parts, learnt = _join(written)
        segments = _encode(marks, parts, hidden)
    except DataError as error:
        raise DataError(f"{sequence_id}: {error}") from error
    return SplitConversation(
        segments,
        num_empty_thoughts=sum(turn.closes_empty_thought for turn in learnt),
        num_context_answers=len(written) - len(learnt),
        num_endless_answers=sum(not turn.has_end for turn in learnt),
    )


def _join(turns: list[Turn]) -> tuple[list[tuple[str, bool]], list[Turn]]:
    """The text of the last turn in parts, each learnt or not, and the turns whose answers are learnt."""
    last = turns[-1]
    text = last.prompt + last.response
    parts: list[tuple[str, bool]] = []
    learnt: list[Turn] = []
    done = 0
    for turn in turns:
        start = len(turn.prompt)
        if start >= done and text.startswith(turn.prompt) and text.startswith(turn.response, start):
            parts += [(text[done:start], False), (turn.response, True)]
            learnt.append(turn)
            done = start + len(turn.response)
    return [part for part in [*parts, (last.rest, False)] if part[0]], learnt


def _encode(marks: Marks, parts: list[tuple[str, bool]], hidden: dict[str, str]) -> list[Segment]:
    """Tokens of each part, such that no token spans two parts.

    A part is encoded behind the text since the last mark, as its first tokens may depend on it; where a token of both
    together would span them, by itself, as it is when one part is given and the other written.
    """
    segments: list[Segment] = []
    text_before, ids_before = "", list[int]()
    for text, is_learnt in parts:
        token_ids = marks.encode(text_before + text, hidden)
        if token_ids[: len(ids_before)] == ids_before:
            token_ids = token_ids[len(ids_before) :]
        else:
            token_ids = marks.encode(text, hidden)
        segments.append(Segment(marks.reveal(text, hidden), token_ids, is_learnt))
        text_before, ids_before = text_before + text, ids_before + token_ids
        last = max(marks.pattern.finditer(text_before), key=lambda match: match.start(), default=None)
        if last is not None:
            kept = len(ids_before) - 1 - ids_before[::-1].index(marks.ids[last.group()])
            text_before, ids_before = text_before[last.start() :], ids_before[kept:]
    return segments
