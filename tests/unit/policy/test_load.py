"""The loaded tokenizer is that of tokenizer.json, whatever class the folder names; for SGLang too."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from hybridflow.errors import ConfigError
from hybridflow.policy.engine_tokenizer import write_engine_tokenizer
from hybridflow.policy.init import write_policy
from hybridflow.policy.load import load_tokenizer
from tests.unit.data.model_folders import (
    CHATML_MARKS,
    DEEPSEEK_MARKS,
    LLAMA3_SPLIT,
    QWEN35_SPLIT,
    QWEN_SPLIT,
    byte_level,
    sentencepiece,
    write_folder,
)

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
R1 = {BOS: True, EOS: True, **DEEPSEEK_MARKS}
QWEN = {"<|endoftext|>": True, **CHATML_MARKS, "<think>": False, "</think>": False}
R1_NAMES = {"bos_token": BOS, "eos_token": EOS}
QWEN_NAMES = {"eos_token": "<|im_end|>"}
TEXTS = [
    "The bond costs 32.4 million dollars",
    "  two  spaces\n\nand\tlines\r\n ",
    "1234567 8.90%",
    "e\u0301 cafe\u0301 n\u0303 हिन्दी ภาษาไทย",
    "债券的票面利率是多少？",
    "a , b . c ! it 's",
    "😀 \u200b \ufffd",
]
FOLDERS = {
    "R1-Distill-Llama": (byte_level(R1, post=f"bos:{BOS}"), "LlamaTokenizerFast", R1_NAMES),
    "deepseek-math": (
        byte_level(R1),
        "LlamaTokenizerFast",
        {"bos_token": BOS, "eos_token": EOS, "add_bos_token": True},
    ),
    "R1-0528-Qwen3": (
        byte_level(R1, split=QWEN_SPLIT, normalizer="NFC"),
        "LlamaTokenizerFast",
        {**R1_NAMES, "add_bos_token": False},
    ),
    "Qwen2": (byte_level(QWEN, split=QWEN_SPLIT, normalizer="NFC"), "Qwen2Tokenizer", QWEN_NAMES),
    "combining marks": (byte_level(QWEN, split=QWEN35_SPLIT), "Qwen2TokenizerFast", QWEN_NAMES),
    "retrained": (
        byte_level(QWEN, split=LLAMA3_SPLIT, ignore_merges=True),
        "Qwen2Tokenizer",
        {"eos_token": "<|im_end|>"},
    ),
    "Llama 2": (sentencepiece(), "LlamaTokenizer", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "no class": (byte_level(QWEN), None, {"eos_token": "<|im_end|>", "clean_up_tokenization_spaces": True}),
}


def write(folder: Path, name: str) -> Tokenizer:
    """The tokenizer whose file is written."""
    tokenizer, class_name, config = FOLDERS[name]
    model_type = "qwen2" if "Qwen" in str(class_name) else "llama"
    named = {} if class_name is None else {"tokenizer_class": class_name}
    write_folder(folder, tokenizer, model_type=model_type, **named, **config)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("name", FOLDERS)
def test_texts_are_encoded_and_decoded_as_the_file_says(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name)
    loaded = load_tokenizer(tmp_path)
    engine = load_tokenizer(write_engine_tokenizer(loaded, tmp_path / "engine"))
    marks = [token.content for token in file.get_added_tokens_decoder().values()]
    for text in [*TEXTS, *marks, *(f"so{mark} {mark}\nso" for mark in marks)]:
        ids = file.encode(text, add_special_tokens=False).ids
        for tokenizer in (loaded, engine):
            assert tokenizer.encode(text, add_special_tokens=False) == ids, text
            for skip in (True, False):
                assert tokenizer.decode(ids, skip_special_tokens=skip) == file.decode(ids, skip_special_tokens=skip)
                pieces = [tokenizer.decode(ids[:end], skip_special_tokens=skip) for end in range(len(ids) + 1)]
                assert pieces == [file.decode(ids[:end], skip_special_tokens=skip) for end in range(len(ids) + 1)]
    assert len(loaded) == file.get_vocab_size()  # no token that the model's vocabulary does not have
    assert loaded.eos_token_id == engine.eos_token_id == file.token_to_id(FOLDERS[name][2]["eos_token"])


@pytest.mark.parametrize(
    ("name", "begins"),
    [("R1-Distill-Llama", True), ("deepseek-math", True), ("R1-0528-Qwen3", False), ("Qwen2", False)],
)
def test_begin_token_of_a_plain_text(tmp_path: Path, name: str, begins: bool) -> None:
    write(tmp_path, name)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("text")
    assert ids.count(tokenizer.convert_tokens_to_ids(BOS)) == int(begins)
    assert ids[-1:] == tokenizer.encode("text", add_special_tokens=False)[-1:]
    assert not begins or ids[0] == tokenizer.bos_token_id


def test_lengths_in_the_file_cut_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, "Qwen2")
    file.enable_truncation(8)
    file.enable_padding(length=16)
    file.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(tmp_path).encode("1 2 3 4 5 6 7 8 9")) == 17


def test_special_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    """tokenizer_config.json calls <think> special; then it would be left out of completions' texts."""
    file = write(tmp_path, "Qwen2")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<think>", "<|im_end|>"],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ids = file.encode("<think>so</think><|im_end|>", add_special_tokens=False).ids
    assert load_tokenizer(tmp_path).decode(ids, skip_special_tokens=True) == "<think>so</think>"


def test_a_token_that_the_configuration_alone_names_gets_its_id_or_is_refused(tmp_path: Path) -> None:
    size = write(tmp_path, "Qwen2").get_vocab_size()
    token = {"content": "<|new|>", "special": True}
    config = {"eos_token": "<|im_end|>", "added_tokens_decoder": {str(size): token}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).encode("<|new|>") == [size]
    config["added_tokens_decoder"] = {str(size + 5): token}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"'<\|new\|>' has id {size} by tokenizer.json and {size + 5}"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|new|>": size + 5}))
    with pytest.raises(ConfigError, match=rf"and {size + 5} by added_tokens.json"):
        load_tokenizer(tmp_path)


def test_an_end_that_is_no_token_is_refused(tmp_path: Path) -> None:
    """transformers makes it one, of an id that the model never writes."""
    write(tmp_path, "Qwen2")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    with pytest.raises(ConfigError, match=r"eos_token is '</s>', which is no token of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_code_of_the_folder_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a class of the folder is named, transformers would ask on the terminal whether to run it."""
    file = write(tmp_path, "Qwen2")
    config = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    (tmp_path / "tokenization_own.py").write_text("raise SystemExit('it ran')")

    def refuse(*_: object) -> str:
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", refuse)
    assert load_tokenizer(tmp_path).encode("text") == file.encode("text").ids
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load its tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="cannot load"):
        write_policy(tmp_path, tmp_path / "out", seed=0)


def test_a_drawn_model_keeps_the_files_of_its_tokenizer(tmp_path: Path) -> None:
    tiny = Path(__file__).parents[3] / "configs" / "models" / "tiny"
    source = tmp_path / "source"
    file = write(source, "R1-Distill-Llama")
    file.add_special_tokens([AddedToken("<|more|>", special=True)])
    file.save(str(source / "tokenizer.json"))
    config = json.loads((tiny / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config))
    (source / "special_tokens_map.json").write_text("{}")
    write_policy(source, tmp_path / "out", seed=0)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
OTHER = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"


@pytest.mark.parametrize(
    ("key", "files", "found"),
    [
        (OTHER, {"chat_template.jinja": TEMPLATE}, TEMPLATE),
        (TEMPLATE, {"chat_template.json": json.dumps({"chat_template": OTHER})}, TEMPLATE),
        (None, {"chat_template.json": json.dumps({"chat_template": TEMPLATE})}, TEMPLATE),
        (None, {"chat_template.jinja": "\ufeff" + TEMPLATE}, TEMPLATE),
        ([{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": OTHER}], {}, TEMPLATE),
        (None, {"chat_template.jinja": TEMPLATE, "additional_chat_templates/rag.jinja": OTHER}, TEMPLATE),
        (None, {}, None),
    ],
)
def test_the_chat_template_is_found_where_people_have_it(
    tmp_path: Path, key: object, files: dict[str, str], found: str | None
) -> None:
    write(tmp_path, "Qwen2")
    write_template(tmp_path, key, files)
    assert load_tokenizer(tmp_path).chat_template == found


@pytest.mark.parametrize(
    ("key", "files", "said"),
    [
        ("", {}, "its chat template is '', which writes no conversation"),
        (TEMPLATE, {"chat_template.jinja": " \n"}, "which writes no conversation"),
        (5, {}, "its chat template is 5, which writes no conversation"),
        ([{"name": "rag", "template": TEMPLATE}], {}, r"several chat templates \(rag\) with no default"),
        (None, {"additional_chat_templates/tool_use.jinja": TEMPLATE}, r"\(tool_use\) with no default"),
    ],
)
def test_a_chat_template_that_writes_nothing_is_refused(
    tmp_path: Path, key: object, files: dict[str, str], said: str
) -> None:
    write(tmp_path, "Qwen2")
    write_template(tmp_path, key, files)
    with pytest.raises(ConfigError, match=said):
        load_tokenizer(tmp_path)


def write_template(folder: Path, key: object, files: dict[str, str]) -> None:
    config = {"eos_token": "<|im_end|>"} | ({} if key is None else {"chat_template": key})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
