"""A folder with a tokenizer.model and no tokenizer.json is read as SentencePiece reads it, or refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from hybridflow.data.synth.spec import SynthSpec, generate_rows
from hybridflow.errors import ConfigError
from hybridflow.policy.load import load_tokenizer

TEXTS = ["  two  spaces\n\nand\tlines", "12 \u503a\u5238 caf\u00e9 e\u0301 \U0001f600", "a , b", "ab ab", " "]


def write(folder: Path, kind: str) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    spec = SynthSpec(tier="hard", doc_tokens=2000, num_records=3, num_train=6, num_test=0)
    texts = [row.prompt[0]["content"] for row in generate_rows(spec, "train", 1)]
    sentences = [text[:2000] for text in texts]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, vocab_size=600, model_type=kind, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
        num_threads=1,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def test_spaces_are_those_of_sentencepiece(tmp_path: Path) -> None:
    """transformers joins the space that is put in front to those that are there."""
    pieces = write(tmp_path, "bpe")
    tokenizer = load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == pieces.encode(text), text
        assert tokenizer.decode(ids) == text


def test_a_model_of_another_kind_than_the_class_makes_of_it_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "unigram")
    with pytest.raises(ConfigError, match=r"LlamaTokenizer reads tokenizer\.model otherwise than SentencePiece does"):
        load_tokenizer(tmp_path)
