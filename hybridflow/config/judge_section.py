"""`[reward.judge]`: the language model that is asked where the rule gave less than full reward."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from hybridflow.config.section import Section, hide_secrets, secrets_in


class JudgeSection(Section):
    """A language model that compares an answer with the gold where the rule gave less than full reward.

    It sees the question and both answers, never the document.
    """

    endpoints: list[str] = Field(default_factory=list)
    """OpenAI-compatible servers, such as "http://127.0.0.1:30000/v1"; empty: rules alone."""
    model: str = Field(default="judge", min_length=1)
    """Name of the model at the servers; `hybridflow judge serve` serves under this one unless told otherwise."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key, where the servers want one."""
    question: Literal["auto", "whole_prompt"] = "auto"
    """Part of a prompt that the judge is told: its question, as rewards/judge_question.py finds it. "whole_prompt",
    resort: where a row has none that can be found, all of the prompt, document included."""
    question_column: str = Field(default="question", min_length=1)
    """Key of `extra_info` that holds the question of a row."""
    num_votes: int = Field(default=1, ge=1)
    """Odd; the majority decides, and no more are asked for than it takes."""
    max_tokens: int = Field(default=4096, ge=1)
    """Longest thoughts, explanation and verdict of the judge; an answer that was cut there is no verdict."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Under which name the servers want that limit."""
    temperature: Annotated[float, Field(ge=0)] | Literal["unset"] = 0.0
    """Temperature of the judge's answers. "unset": none is sent, for servers that allow only their own."""
    max_unreadable: int = Field(default=3, ge=1)
    """Answers without a verdict after which a vote is unknown; each time it is asked for in other words."""
    max_concurrency: int = Field(default=16, ge=1)
    """Requests in flight at each endpoint, from each reward worker."""
    max_requests_per_s: float | None = Field(default=None, gt=0)
    """At each endpoint, from each reward worker; empty: no limit."""
    late_after_s: float = Field(default=10.0, gt=0)
    """A request without an answer for so long is sent elsewhere too; less where the last answers were all faster, and
    never more than a fifth of `deadline_s`."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time for one answer of a server."""
    deadline_s: float = Field(default=50.0, gt=0)
    """Longest time for a verdict, with all its votes, pauses and repeats; then it is unknown."""
    cache_path: str | None = None
    """SQLite file, on a local disk, that keeps verdicts for later runs; empty: none."""
    price_per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    """For the cost in metrics and summary."""
    price_per_million_completion_tokens: float = Field(default=0.0, ge=0)
    """For the cost in metrics and summary."""

    @field_validator("endpoints")
    @classmethod
    def _check_urls(cls, urls: list[str]) -> list[str]:
        whole = [complete_judge_url(url) for url in urls]
        if len(set(whole)) < len(whole):
            raise ValueError(f"{whole} name one server twice. Remedy: name it once, and raise its concurrency")
        return whole

    @field_validator("question_column")
    @classmethod
    def _check_column(cls, column: str) -> str:
        return column.removeprefix("extra_info.")

    @field_validator("num_votes")
    @classmethod
    def _check_votes(cls, num_votes: int) -> int:
        if num_votes % 2 == 0:
            raise ValueError(f"{num_votes} votes may tie. Remedy: use an odd number")
        return num_votes


def complete_judge_url(url: str) -> str:
    """The base URL of a server: "http://host:30000" and a "/" at its end are completed to "http://host:30000/v1"."""
    url = url.strip()
    shown = hide_secrets(unquote(url))
    if secrets_in(unquote(url)):
        raise ValueError(
            f"{shown!r} holds a password or a key, and configurations are written down and sent to trackers. Remedy: "
            "write the URL without it, and put the key into the environment variable named by reward.judge.api_key_env"
        )
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{shown!r} holds a character that no URL has. Remedy: write it in ASCII, without spaces")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(
            f"{shown!r} is no URL of a server ({error}). Remedy: write one such as http://127.0.0.1:30000/v1"
        ) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{shown!r} is no URL of a server. Remedy: write one such as http://127.0.0.1:30000/v1")
    if parts.query or parts.fragment:
        raise ValueError(f"{shown!r} has more than a path. Remedy: write one such as http://127.0.0.1:30000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"
