"""Model folders as people have them, in small: tokenizers trained on the spot, and the chat templates of the families.

The splits, normalizers and templates have the structure of the published models; the vocabularies are tiny.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from hybridflow.data.synth.spec import SynthSpec, generate_rows

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35_SPLIT = QWEN_SPLIT.replace(r"\p{L}+", r"[\p{L}\p{M}]+")

DEEPSEEK_MARKS = {"<｜User｜>": False, "<｜Assistant｜>": False, "<think>": False, "</think>": False}
CHATML_MARKS = {"<|im_start|>": True, "<|im_end|>": True}
THINKING = {"<think>": False, "</think>": False}


def _texts() -> list[str]:
    spec = SynthSpec(tier="hard", doc_tokens=2000, num_records=3, num_train=6, num_test=0)
    texts = [row.prompt[0]["content"] for row in generate_rows(spec, "train", 1)]
    return [
        *texts,
        "债券的票面利率是多少？该公司在二零二三年的收入为三百二十四万元。" * 3,
        "naïve café Ünïcode e\u0301 " * 5,
    ]


@cache
def _byte_level_json(split: str, normalizer: str, post: str, ignore_merges: bool) -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    if normalizer == "NFC":
        tokenizer.normalizer = normalizers.NFC()
    if post == "ByteLevel":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer.to_str()


def byte_level(
    marks: dict[str, bool],
    *,
    split: str = LLAMA3_SPLIT,
    normalizer: str = "",
    post: str = "ByteLevel",
    ignore_merges: bool = False,
) -> Tokenizer:
    """A byte-level BPE; `marks` are its added tokens, True where they are special. post "bos:<token>" puts it first."""
    tokenizer = Tokenizer.from_str(_byte_level_json(split, normalizer, post.partition(":")[0], ignore_merges))
    for mark, special in marks.items():
        token = AddedToken(mark, special=special, normalized=False)
        _ = tokenizer.add_special_tokens([token]) if special else tokenizer.add_tokens([token])
    kind, _, bos = post.partition(":")
    if kind == "bos":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


@cache
def _sentencepiece_json() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    # words are learnt apart, as sentencepiece does; the published files have no pre-tokenizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[^▁]+"), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    content: dict[str, Any] = json.loads(tokenizer.to_str())
    content["pre_tokenizer"] = None
    content["added_tokens"] = content["added_tokens"][: len(special)]
    return json.dumps(content)


def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral: pieces with byte fallback, a space put in front, <s> first."""
    tokenizer = Tokenizer.from_str(_sentencepiece_json())
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def write_folder(
    path: Path, tokenizer: Tokenizer, chat_template: str | None = None, *, model_type: str = "llama", **config: Any
) -> Path:
    """tokenizer.json, tokenizer_config.json with `config`, and a config.json of `model_type`."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    if chat_template is not None:
        config["chat_template"] = chat_template
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return path
