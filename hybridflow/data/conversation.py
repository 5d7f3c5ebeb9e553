"""Conversations as training sequences: which tokens the model reads, and which it learns to write."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from hybridflow.data.template import Message
from hybridflow.errors import DataError
from hybridflow.types import TrainSequence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], sequence_id: str = "conversation"
) -> TrainSequence:
    """One conversation as a row of supervised training.

    The prompt ends with the first generation prompt; all the rest is the response. The loss mask is 1 exactly on the
    tokens of assistant contents and on the end token that closes each. Raises DataError when the conversation does not
    begin with a user message and end with an assistant's, or when the chat template rewrites earlier turns (as those do
    that drop old reasoning), because then no one sequence stands for all turns.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns or turns[0] == 0 or turns[-1] != len(messages) - 1:
        roles = [message["role"] for message in messages]
        raise DataError(f"{sequence_id}: a conversation goes from a user message to an assistant's; got roles {roles}")
    if tokenizer.chat_template is None:
        raise DataError(f"{sequence_id}: the tokenizer has no chat template, so turns cannot be told apart; set one")
    text = _render(tokenizer, messages, add_generation_prompt=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    token_ids = cast(list[int], encoded["input_ids"])
    offsets = cast(list[tuple[int, int]], encoded["offset_mapping"])
    starts = [start for start, _ in offsets]
    mask = [0] * len(token_ids)
    for turn in turns:
        before = _render(tokenizer, messages[:turn], add_generation_prompt=True)
        through = _render(tokenizer, messages[: turn + 1], add_generation_prompt=False)
        first, last = bisect_left(starts, len(before)), bisect_left(starts, len(through))
        if not (text.startswith(through) and through.startswith(before)) or offsets[first - 1][1] > len(before):
            raise DataError(
                f"{sequence_id}: the chat template writes message {turn} differently once later messages follow; "
                "train on conversations of one question, or use a template that only appends"
            )
        stop = _end_of_turn(token_ids, first, last, tokenizer.eos_token_id)
        mask[first:stop] = [1] * (stop - first)
    prompt_length = mask.index(1)
    return TrainSequence(
        sequence_id=sequence_id,
        prompt_token_ids=token_ids[:prompt_length],
        response_token_ids=token_ids[prompt_length:],
        loss_mask=mask[prompt_length:],
    )


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": message["role"], "content": message["content"]} for message in messages],
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    return cast(str, text)


def _end_of_turn(token_ids: list[int], first: int, last: int, end_token_id: object) -> int:
    """Index after the end token of the turn [first, last); what the template puts behind it is not learnt."""
    for index in range(last - 1, first - 1, -1):
        if token_ids[index] == end_token_id:
            return index + 1
    return last
