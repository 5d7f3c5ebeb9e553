"""The tiny tokenizer: 1024 tokens, lossless on any text, one token per word of the easy tier.

Vocabulary, in order of id: special tokens, the fixed phrases of the prompt template, the 256 bytes, the words of the
easy tier, and merges trained on text of the hard tier, as many as fill the rest. A word of the vocabulary is whole
(`ignore_merges`); any other text is merged from bytes.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hybridflow.data.chat_template import ANSWER_OPENING, DOCUMENT_CLOSING, DOCUMENT_OPENING, FORMAT_INSTRUCTION
from hybridflow.data.synth.easy import list_easy_words
from hybridflow.data.synth.spec import SynthSpec, generate_rows

VOCAB_SIZE = 1024
PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (PAD, USER, ASSISTANT, END)
PHRASES = (DOCUMENT_OPENING, DOCUMENT_CLOSING, FORMAT_INSTRUCTION, ANSWER_OPENING)
"""Fixed texts of the template, one token each. They are not special: decoding gives their text back."""
PUNCTUATION = (".", "?", ",")
MAX_LENGTH = 32768

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{ '<|assistant|>' + message['content'] + '<|end|>' }}"
    "{%- else -%}"
    "{{ '<|user|>' + message['content'] }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

_SPLIT = r" ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]|\s"
"""A word, up to three digits or a punctuation mark, each with the space before it; or one white-space character."""
_TRAINING_SEED = 20260101


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, built each time, always the same. Takes about a second."""
    vocabulary = [*SPECIAL_TOKENS, *PHRASES, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    known = set(vocabulary)
    for word in _word_pieces():
        if word not in known:
            vocabulary.append(word)
            known.add(word)
    merges: list[tuple[str, str]] = []
    for left, right in _train_merges():
        missing = left + right not in known
        if missing and len(vocabulary) == VOCAB_SIZE:
            break
        merges.append((left, right))
        if missing:
            vocabulary.append(left + right)
            known.add(left + right)
    if len(vocabulary) != VOCAB_SIZE:
        raise AssertionError(f"the merges fill {len(vocabulary)} of {VOCAB_SIZE} places: train more of them")
    token_ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.BPE(vocab=token_ids, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken(phrase, special=False, normalized=False) for phrase in PHRASES])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _pre_tokenizer() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _word_pieces() -> list[str]:
    """Easy-tier words as the byte-level model spells them: with the space before, and bare where one opens a text."""
    words = [f"Ġ{word}" for word in list_easy_words() if word != "What"]
    return [*words, "The", "What", *PUNCTUATION]


def _train_merges() -> list[tuple[str, str]]:
    """Merges, most frequent pair first, of reports and contracts from the generator."""
    spec = SynthSpec(tier="hard", doc_tokens=3000, num_records=4, num_train=48, num_test=0)
    texts = [row.prompt[0]["content"] for row in generate_rows(spec, "train", _TRAINING_SEED)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)
    return [(left, right) for left, right in json.loads(trained.to_str())["model"]["merges"]]
