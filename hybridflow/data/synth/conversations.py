"""Warm-up conversations of the easy tier: several questions on one document, so that it teaches several look-ups.

A share of the answers can be a bad habit, "unknown", though the document holds the answer. Reinforcement learning then
has something to undo that a tiny model can undo in a few dozen steps.
"""

from __future__ import annotations

import random

from hybridflow.data.chat_template import Message, build_answer, build_follow_up, build_prompt
from hybridflow.data.streams import derive_stream
from hybridflow.data.synth.easy import ABSTENTION, Record, build_question, check_easy_size, generate_document
from hybridflow.errors import ConfigError


def generate_conversations(
    num: int,
    doc_tokens: int,
    num_records: int = 8,
    num_questions: int = 8,
    abstain_fraction: float = 0.0,
    seed: int = 0,
    first: int = 0,
) -> list[list[Message]]:
    """`num` conversations of `num_questions` questions each about the records of one document.

    No record is asked about again before all have been: an answer that can be copied from an earlier turn teaches the
    model to look there, and look-up in the document comes later or, for some seeds, hardly at all.

    The first user message is the full template; later ones are the question and the format instruction. Conversation i
    depends on (seed, first + i) and the sizes alone, so a long stream can be made piece by piece.
    Raises ConfigError when no document of this size exists or the fraction is not in [0, 1].
    """
    if problem := check_easy_size(doc_tokens, num_records):
        raise ConfigError(problem)
    if not 0.0 <= abstain_fraction <= 1.0:
        raise ConfigError(f"abstain_fraction must be in [0, 1]; got {abstain_fraction}")
    if num_questions < 1:
        raise ConfigError(f"num_questions must be at least 1; got {num_questions}")
    return [
        _conversation(index, doc_tokens, num_records, num_questions, abstain_fraction, seed)
        for index in range(first, first + num)
    ]


def _conversation(
    index: int, doc_tokens: int, num_records: int, num_questions: int, abstain_fraction: float, seed: int
) -> list[Message]:
    stream = derive_stream("hybridflow.synth", "easy", "warmup", seed, index)
    document, records = generate_document(stream, doc_tokens, num_records)
    messages: list[Message] = []
    for record in _ask_in_rounds(stream, records, num_questions):
        question = build_question(record.attribute)
        content = build_follow_up(question) if messages else build_prompt(document, question)
        answer = ABSTENTION if stream.random() < abstain_fraction else record.value
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": build_answer(answer)})
    return messages


def _ask_in_rounds(stream: random.Random, records: list[Record], num_questions: int) -> list[Record]:
    """Records to ask about: each round has every record once, in random order."""
    asked: list[Record] = []
    while len(asked) < num_questions:
        asked += stream.sample(records, min(len(records), num_questions - len(asked)))
    return asked
