"""Chat templates of models, and the prompt templates of the recipe: texts of conversations.

A model's template runs in a process of its own (`template_process`), one per template, bounded in CPU time, memory and
length.

Source of the prompts: QwenLong-L1 (arXiv 2505.17667) and its evaluation scripts; the wording is theirs, to the
character. The four-choice wording is that of LongBench-v2 with the answer sentence that the recipe's verifier looks
for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from hybridflow.data.template_process import read_frame, write_frame
from hybridflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


DOCUMENT_OPENING = "Please read the following text and answer the question below.\n\n<text>\n"
DOCUMENT_CLOSING = "\n</text>\n\n"
ANSWER_OPENING = "Therefore, the answer is"
FORMAT_INSTRUCTION = f'\n\nFormat your response as follows: "{ANSWER_OPENING} (insert answer here)".'
CHOICE_ANSWER_OPENING = "The correct answer is"
CHOICE_FORMAT_INSTRUCTION = f'\n\nFormat your response as follows: "{CHOICE_ANSWER_OPENING} (insert answer here)".'
CHOICE_LETTERS = ("A", "B", "C", "D")


def build_prompt(document: str, question: str) -> str:
    """The text of a user message that asks `question` about `document`."""
    return f"{DOCUMENT_OPENING}{document}{DOCUMENT_CLOSING}{build_follow_up(question)}"


def build_follow_up(question: str) -> str:
    """The text of a later user message, on a document already given."""
    return f"{question}{FORMAT_INSTRUCTION}"


def build_choice_prompt(document: str, question: str, choices: Sequence[str]) -> str:
    """The text of a user message with four answers to choose from. Raises DataError unless there are four."""
    if len(choices) != len(CHOICE_LETTERS):
        raise DataError(f"a four-choice question needs four choices, got {len(choices)}: {list(choices)}")
    lines = "".join(f"\n({letter}) {choice}" for letter, choice in zip(CHOICE_LETTERS, choices, strict=True))
    return f"{DOCUMENT_OPENING}{document}{DOCUMENT_CLOSING}{question}{lines}{CHOICE_FORMAT_INSTRUCTION}"


def build_answer(answer: str) -> str:
    """The answer sentence of an open question: 'Therefore, the answer is yen.'"""
    return f"{ANSWER_OPENING} {answer}."


def build_choice_answer(letter: str) -> str:
    """The answer sentence of a four-choice question: 'The correct answer is (B)'."""
    return f"{CHOICE_ANSWER_OPENING} ({letter})"


MAX_TEMPLATE_CHARS = 1 << 20
CPU_S = 2.0
"""CPU time for a conversation, and as much again for each million characters. Templates of models take milliseconds."""
MEGACHARS = 1 << 20
MEMORY_BYTES, MEMORY_BYTES_PER_CHAR = 512 << 20, 40
LONGEST_GROWTH, LONGEST_EXTRA = 4, 1 << 20
"""A text is at most 4 times as long as the contents, and a million characters more."""
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ", "LANG", "LC_ALL")
_SPACE = re.compile(r"\s+")
_PROGRAM = Path(__file__).with_name("template_process.py")


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """Render messages as `tokenizer.apply_chat_template` does.

    Raises DataError when the template refuses these messages, as some do a system message or two user messages in
    turn, and ConfigError, naming its file, for a template that is malformed or takes more than it may.
    """
    named = _file_of(tokenizer)
    try:
        source = cast(str, tokenizer.get_chat_template())
    except ValueError as error:  # several, and none of them the default
        raise ConfigError(f"{named}: {error}") from error
    variables = tuple((name, str(token)) for name, token in sorted(tokenizer.special_tokens_map.items()))
    return _open_template(source, variables, named).render(messages, add_generation_prompt)


def render_whole(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The same; DataError too where the template writes nothing of a message that a model is to read."""
    text = render_chat(tokenizer, messages, add_generation_prompt)
    for index, message in enumerate(messages):
        if not _holds(text, message):
            raise DataError(
                f"{_file_of(tokenizer)} leaves out what message {index} says, of the role {message['role']}: it has no "
                "place for one there. Put it into the user's, or take it away"
            )
    return text


def _holds(text: str, message: Message) -> bool:
    """Whether what a model is to read is there, spaces aside. Of answers templates cut the thinking."""
    content = message["content"].strip()
    if message["role"] == "assistant" or content in text:
        return True
    forms = [content, json.dumps(content)[1:-1], json.dumps(content, ensure_ascii=False)[1:-1]]
    squeezed = _SPACE.sub("", text)
    return any(_SPACE.sub("", form) in squeezed for form in forms)


def _file_of(tokenizer: PreTrainedTokenizerBase) -> str:
    folder = Path(tokenizer.name_or_path or "")
    named = [folder / name for name in ("chat_template.jinja", "tokenizer_config.json")]
    return next((f"the chat template in {path}" for path in named if path.is_file()), "the chat template")


@lru_cache(maxsize=8)
def _open_template(source: str, variables: tuple[tuple[str, str], ...], name: str) -> _Template:
    return _Template(source, dict(variables), name)


class _Template:
    """One template, and the process that renders it."""

    def __init__(self, source: str, variables: dict[str, str], name: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise ConfigError(f"{name} has {len(source)} characters; at most {MAX_TEMPLATE_CHARS} are read")
        self._settings = {"template": source, "variables": variables}
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        num_chars = sum(len(message["content"]) for message in messages)
        request = {
            "messages": [{"role": message["role"], "content": message["content"]} for message in messages],
            "prompt": add_generation_prompt,
            "cpu_s": CPU_S * (1 + num_chars / MEGACHARS),
            "memory_bytes": MEMORY_BYTES + MEMORY_BYTES_PER_CHAR * num_chars,
            "max_chars": LONGEST_EXTRA + LONGEST_GROWTH * num_chars,
        }
        with self._lock:
            answer = self._ask(request)
        if "text" in answer:
            return answer["text"]
        raise self._error(answer["error"], answer["message"], request, [message["role"] for message in messages])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._start()
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            write_frame(process.stdin, request)
            answer = read_frame(process.stdout)
        except BrokenPipeError:
            answer = None
        except BaseException:  # interrupted between question and answer: the next one must not read this answer
            process.kill()
            raise
        if answer is None:
            code = process.wait()
            self._process = None
            answer = {"error": "time" if code == -signal.SIGPROF else "ended", "message": f"exit code {code}"}
        return answer

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        weakref.finalize(self, _end, self._process)
        assert self._process.stdin is not None
        write_frame(self._process.stdin, self._settings)

    def _error(self, kind: str, message: str, request: dict[str, Any], roles: list[str]) -> Exception:
        if kind in ("refused", "failed"):
            return DataError(f"{self._name} does not take messages of the roles {_shown(roles)}: {message}")
        what = {
            "syntax": f"is malformed: {message}",
            "time": f"takes more than {request['cpu_s']:.0f} s of CPU time for one conversation",
            "memory": f"takes more than {request['memory_bytes'] >> 20} MiB of memory for one conversation",
            "length": f"makes {message} of one conversation, at most {request['max_chars']} are taken",
            "ended": f"cannot be rendered: its process ended with {message}",
        }[kind]
        return ConfigError(f"{self._name} {what}. Remedy: put the template of the model's makers there")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Closes its input, at which it ends, and waits for that."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()


def _shown(roles: list[str]) -> str:
    return ", ".join(roles[:8]) + (f", ... ({len(roles)})" if len(roles) > 8 else "")
