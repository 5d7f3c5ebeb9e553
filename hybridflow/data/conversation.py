"""Conversations as training sequences: which tokens the model reads, and which it learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybridflow.data.template import Message, encode_chat
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
    token_ids = encode_chat(tokenizer, messages, add_generation_prompt=False)
    mask = [0] * len(token_ids)
    prompt_length = 0
    for turn in turns:
        before = encode_chat(tokenizer, messages[:turn], add_generation_prompt=True)
        through = encode_chat(tokenizer, messages[: turn + 1], add_generation_prompt=False)
        if through[: len(before)] != before or token_ids[: len(through)] != through:
            raise DataError(
                f"{sequence_id}: the chat template encodes message {turn} differently once later messages follow; "
                "train on conversations of one question, or use a template that only appends"
            )
        stop = _end_of_turn(through, len(before), tokenizer.eos_token_id)
        mask[len(before) : stop] = [1] * (stop - len(before))
        prompt_length = prompt_length or len(before)
    return TrainSequence(
        sequence_id=sequence_id,
        prompt_token_ids=token_ids[:prompt_length],
        response_token_ids=token_ids[prompt_length:],
        loss_mask=mask[prompt_length:],
    )


def _end_of_turn(token_ids: list[int], start: int, end_token_id: object) -> int:
    """Index after the turn's last end token; text that the template puts behind it (a newline) is not learnt."""
    for index in range(len(token_ids) - 1, start - 1, -1):
        if token_ids[index] == end_token_id:
            return index + 1
    return len(token_ids)
