"""One question to every endpoint of the judge, whose answer is known: are two equal answers the same?"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from http import HTTPStatus

import aiohttp

from hybridflow.config.judge_section import JudgeSection
from hybridflow.control.preflight.findings import WAIT_S, Finding
from hybridflow.control.preflight.subject import Subject
from hybridflow.reward_service.judge_endpoint import NO_KEY, AskError, EndpointClient
from hybridflow.reward_service.judge_response import LENGTH, Answer
from hybridflow.rewards.judge_prompt import build_judge_messages, remind
from hybridflow.rewards.judge_vote import Vote, parse_vote
from hybridflow.rewards.thinking import Tags

QUESTION = "Which city is the capital of France?"
ANSWER = "Paris"
MODELS_S = 1.0
"""For the list of its models, where it does not answer, or refuses the configured one."""
MODELS_BYTES = 2**16
PROBED = ("timeout", "refused", "bad_request")


def check_judge(subject: Subject) -> Iterator[Finding]:
    """Every endpoint answers, and with a verdict."""
    section = subject.config.reward.judge
    yield from asyncio.run(_ask_all(section, subject.config.reward.rules.thinking_tags))


async def _ask_all(section: JudgeSection, tags: Tags) -> list[Finding]:
    return list(await asyncio.gather(*(_ask(url, section, tags) for url in section.endpoints)))


async def _ask(url: str, section: JudgeSection, tags: Tags) -> Finding:
    """An answer without a verdict is asked for in other words, as in a run."""
    is_set = "request_timeout_s" in section.model_fields_set
    limit_s = section.request_timeout_s if is_set else min(section.request_timeout_s, WAIT_S)
    client = EndpointClient(url, section.model_copy(update={"request_timeout_s": limit_s}))
    messages = build_judge_messages(QUESTION, ANSWER, ANSWER)
    try:
        async with asyncio.timeout(limit_s + MODELS_S):
            answer, num_unreadable = await client.ask(messages), 0
            while _read(answer, tags) == "unknown" and answer.finish_reason != LENGTH:
                num_unreadable += 1
                if num_unreadable >= section.max_unreadable:
                    break
                answer = await client.ask(remind(messages, num_unreadable))
        return _judge_answer(url, answer, section, tags)
    except TimeoutError:
        return Finding("warning", f"reward.judge.endpoints: {url}: no verdict within {limit_s:g} s, though it answers")
    except AskError as error:
        is_alive, models = await _list_models(url, section) if error.kind in PROBED else (False, "")
        level = "warning" if error.kind == "busy" or (error.kind == "timeout" and is_alive) else "error"
        return Finding(level, f"reward.judge.endpoints: {error.why}. Remedy: {_remedy(error, section, models)}")
    finally:
        await client.close()


def _read(answer: Answer, tags: Tags) -> Vote:
    return parse_vote(answer.text, tags) if answer.is_finished else "unknown"


def _judge_answer(url: str, answer: Answer, section: JudgeSection, tags: Tags) -> Finding:
    vote = _read(answer, tags)
    if vote == "yes":
        return Finding("fact", f"the judge {section.model} at {url} says YES to two equal answers")
    shown = f"the judge {section.model} at {url} answered {answer.text[-120:]!r}"
    if vote == "no":
        return Finding(
            "warning", f"{shown}: NO, where both answers were {ANSWER!r}. Remedy: use a model that can compare answers"
        )
    if answer.finish_reason == LENGTH:
        remedy = f"raise reward.judge.max_tokens ({section.max_tokens})"
    else:
        remedy = "use a model that follows the instruction to end with a line [[YES]] or [[NO]], an instruct model"
    return Finding("error", f"{shown}, which is no verdict. Remedy: {remedy}")


def _remedy(error: AskError, section: JudgeSection, models: str) -> str:
    if error.kind == "timeout":
        return (
            "start it anew, or wait until it has loaded; if it needs that long, set reward.judge.request_timeout_s, "
            "and so long it is waited for here"
        )
    if error.kind == "unreachable":
        return "start it (hybridflow judge serve --model ... --port ...), or correct the address"
    if any(f"HTTP {status.value}" in error.why for status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)):
        return f"export {section.api_key_env}=<its key>, or name the variable that holds it in reward.judge.api_key_env"
    if error.kind in ("refused", "bad_request"):
        known = f" ({models})" if models else ""
        return (
            f"name a model that it serves{known} in reward.judge.model, now {section.model!r}; or correct the address"
        )
    if error.kind == "malformed":
        return "name an OpenAI-compatible server"
    return "look at its log; start it anew"


async def _list_models(url: str, section: JudgeSection) -> tuple[bool, str]:
    """(whether the server answers at all, names of its models where it tells them)."""
    try:
        timeout = aiohttp.ClientTimeout(total=MODELS_S)
        headers = {"Authorization": f"Bearer {os.environ.get(section.api_key_env) or NO_KEY}"}
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(f"{url}/models", allow_redirects=False) as response,
        ):
            content = await response.content.read(MODELS_BYTES)
    except (aiohttp.ClientError, TimeoutError):
        return False, ""
    try:
        return True, ", ".join(str(model["id"]) for model in json.loads(content)["data"][:5])
    except (ValueError, KeyError, TypeError):
        return True, ""  # it was only for the remedy
