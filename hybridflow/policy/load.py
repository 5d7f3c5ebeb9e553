"""The tokenizer of a Hugging Face directory, or what is wrong with it.

What counts is tokenizer.json: encoding and decoding are those of the file itself. The class that tokenizer_config.json
names is not asked, because transformers 5 rebuilds pre-tokenizer, normalizer and decoder of some classes for a local
folder: under LlamaTokenizerFast a byte-level file loses its spaces, under Qwen2Tokenizer a split of its own.
tokenizer_config.json gives the names of special tokens, the chat template, and `add_bos_token`. No code of the folder
is run. Where there is a tokenizer.model alone, SentencePiece's own reading of it counts, and is compared with what
transformers makes of the file: transformers 5 takes every such file of a Llama for byte-pair merges, and joins the
space that SentencePiece puts in front to a space that is there. A folder with a tokenizer.json does not come here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridflow.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PIECES_FILE = "tokenizer.model"
TEXTS = (
    "Please read the following text and answer the question below. What was the total revenue of the company?",
    "The bond costs 32.4 million dollars, 1234567 in all",
    "  two  spaces\n\nand\tlines \r\n ",
    "債券的票面利率是多少？ 债券",
    "e\u0301 caf\u00e9 n\u0303 \U0001f600 \u0939\u093f\u0928\u094d\u0926\u0940",
    "a , b . it 's <|x|> </x>",
)


def match_pieces(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Makes the tokenizer read spaces as SentencePiece does. ValueError, naming a text, where the tokens differ still.

    A file that is not SentencePiece's is left to the class that reads it.
    """
    import sentencepiece

    pieces: Any = sentencepiece.SentencePieceProcessor()
    try:
        pieces.Load(str(path))
    except RuntimeError:
        return
    if _find_difference(tokenizer, pieces) is None:
        return
    _read_spaces(tokenizer)
    if (text := _find_difference(tokenizer, pieces)) is not None:
        raise ValueError(
            f"{type(tokenizer).__name__} reads {path.name} otherwise than SentencePiece does, {text!r} for one, and "
            "there is no tokenizer.json, which would count: add that of the model's makers"
        )


def _find_difference(tokenizer: PreTrainedTokenizerBase, pieces: Any) -> str | None:
    return next(
        (text for text in TEXTS if tokenizer.encode(text, add_special_tokens=False) != pieces.encode(text)), None
    )


def _read_spaces(tokenizer: PreTrainedTokenizerBase) -> None:
    """As the tokenizer.json of Llama 2: a space in front of each text, and every space a piece's."""
    from tokenizers import normalizers

    backend: Any = tokenizer
    backend.backend_tokenizer.pre_tokenizer = None
    backend.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )


TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.tiktoken")
OTHER_FILES = ("merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
TOKENIZER_FILE, CONFIG_FILE, TEMPLATE_FILE = "tokenizer.json", "tokenizer_config.json", "chat_template.json"
ADDED_FILE = "added_tokens.json"


def load_tokenizer(hf_dir: str | Path, named: str | None = None) -> PreTrainedTokenizerBase:
    """From disk only. ConfigError when it is missing or damaged; `named` is how the user gave the directory.

    Without its files transformers would give a tokenizer that knows no text, or an error about other packages.
    """
    named = named or f"model.path = {str(hf_dir)!r}"
    missing = f"{named}: no tokenizer files there. Add tokenizer.json"
    if not any(path for pattern in TOKENIZER_FILES for path in Path(hf_dir).glob(pattern)):
        raise ConfigError(missing)
    try:
        if (Path(hf_dir) / TOKENIZER_FILE).is_file():
            tokenizer = _load_file(Path(hf_dir))
        else:
            tokenizer = _convert_files(Path(hf_dir))
        template = _find_template(tokenizer, Path(hf_dir))
    except Exception as error:  # each family's tokenizer raises its own
        raise ConfigError(f"{named}: cannot load its tokenizer: {error}. Copy its files again") from error
    tokenizer.chat_template = _check_template(template, named)
    if not tokenizer.encode("text", add_special_tokens=False):
        raise ConfigError(missing)
    return tokenizer


def _find_template(tokenizer: PreTrainedTokenizerBase, hf_dir: Path) -> object:
    """As transformers has it; where that is none, the one beside it, which is a processor's or a tokenizer's."""
    if tokenizer.chat_template is not None:
        return tokenizer.chat_template
    return _read_json(hf_dir / TEMPLATE_FILE).get("chat_template")


def _check_template(template: object, named: str) -> str | None:
    """The one that conversations are written with: of several, the default. Raises ConfigError where there is none."""
    if isinstance(template, dict):
        if "default" not in template:
            raise ConfigError(
                f"{named}: several chat templates ({', '.join(map(str, template))}) with no default: put the one to "
                "use into chat_template.jinja, or name it default"
            )
        template = template["default"]
    if template is None:
        return None
    if not isinstance(template, str) or not template.strip("\ufeff \n"):
        raise ConfigError(
            f"{named}: its chat template is {template!r:.40}, which writes no conversation: put that of the model's "
            "makers there, or take the key or file away to have plain texts"
        )
    return template.removeprefix("\ufeff")


def tokenizer_files(hf_dir: Path) -> list[Path]:
    """All files that belong to the tokenizer, for those who copy them."""
    names = {path for pattern in (*TOKENIZER_FILES, *OTHER_FILES) for path in hf_dir.glob(pattern)}
    return sorted(path for path in names if path.is_file())


def _load_file(hf_dir: Path) -> PreTrainedTokenizerFast:
    """tokenizer.json under a class without behaviour of its own."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast  # seconds to import

    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        hf_dir, local_files_only=True, trust_remote_code=False, clean_up_tokenization_spaces=False
    )
    backend: Tokenizer = Tokenizer.from_file(str(hf_dir / TOKENIZER_FILE))
    # A file may ask to cut or fill texts to a length; that is for those who make batches.
    backend.no_truncation()
    backend.no_padding()
    config, added = _read_json(hf_dir / CONFIG_FILE), _read_json(hf_dir / ADDED_FILE)
    listed: dict[str, Any] = config.get("added_tokens_decoder") or {}
    ids = [(token_id, _spelled(token), CONFIG_FILE) for token_id, token in listed.items()]
    ids += [(token_id, token, ADDED_FILE) for token, token_id in added.items()]
    end = tokenizer.eos_token
    if isinstance(end, str) and backend.token_to_id(end) is None and end not in {token for _, token, _ in ids}:
        raise ValueError(f"eos_token is {end!r}, which is no token of {TOKENIZER_FILE}: no text could end")
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for _, token in sorted(tokenizer.added_tokens_decoder.items()):
        if token.content not in known:  # named in tokenizer_config.json alone, or an ordinary piece of the vocabulary
            _ = backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
    tokenizer._tokenizer = backend
    _check_ids(ids, backend)
    if config.get("add_bos_token") is True:
        _put_bos_first(tokenizer, backend)
    return tokenizer


def _convert_files(hf_dir: Path) -> PreTrainedTokenizerBase:
    """Convert the files of a folder without tokenizer.json, by the class that it names."""
    from transformers import AutoTokenizer

    code = _read_json(hf_dir / CONFIG_FILE).get("auto_map")
    if code:
        raise ValueError(
            f"it is code of the folder (auto_map = {code}), which is not run, and there is no tokenizer.json"
        )
    tokenizer = AutoTokenizer.from_pretrained(hf_dir, local_files_only=True, trust_remote_code=False)
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"it has no tokenizer.json, and {type(tokenizer).__name__} gives none: write one with save_pretrained"
        )
    if (hf_dir / PIECES_FILE).is_file():
        match_pieces(tokenizer, hf_dir / PIECES_FILE)
    return tokenizer


def _check_ids(ids: list[tuple[Any, str, str]], backend: Tokenizer) -> None:
    """ValueError where a token would get another id than the file beside tokenizer.json gives it."""
    for token_id, token, file in ids:
        found = backend.token_to_id(token)
        if found != int(token_id):
            raise ValueError(f"token {token!r} has id {found} by {TOKENIZER_FILE} and {token_id} by {file}")


def _spelled(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _put_bos_first(tokenizer: PreTrainedTokenizerFast, backend: Tokenizer) -> None:
    """Makes encoding with special tokens begin with bos_token, where there is one, unless it does."""
    from tokenizers import processors

    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    if not isinstance(bos, str) or backend.encode("text").ids[:1] == [bos_id]:
        return
    first = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_id)])
    own = backend.post_processor
    backend.post_processor = first if own is None else processors.Sequence([own, first])


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
