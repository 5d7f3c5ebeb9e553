"""One question to every endpoint of the judge, whose answer is known: are two equal answers the same?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import aiohttp

from hybridflow.config.judge_section import JudgeSection
from hybridflow.control.preflight.findings import WAIT_S, Finding
from hybridflow.control.preflight.judge_remedies import find_judge_remedy
from hybridflow.control.preflight.subject import Subject
from hybridflow.reward_service.judge.response import LENGTH, Answer
from hybridflow.reward_service.judge.server import AskError, EndpointClient, read_key
from hybridflow.rewards.judge_prompt import build_judge_messages, remind
from hybridflow.rewards.judge_verdict import Vote, parse_vote
from hybridflow.rewards.text.thinking import Tags

QUESTION = "Which city is the capital of France?"
ANSWER = "Paris"
MODELS_S = 1.0
"""For the list of its models, where it does not answer, or refuses the configured one."""
PAUSE_S = 0.3
"""Before a server that failed is asked once more."""
MODELS_BYTES = 2**16
PROBED = ("timeout", "refused", "bad_request")


def check_judge(subject: Subject) -> Iterator[Finding]:
    """Every endpoint answers, and with a verdict."""
    section = subject.config.reward.judge
    yield from asyncio.run(_ask_all(section, subject.config.reward.rules.thinking_tags))


async def _ask_all(section: JudgeSection, tags: Tags) -> list[Finding]:
    return list(await asyncio.gather(*(_ask(url, section, tags) for url in section.endpoints)))


async def _ask(url: str, section: JudgeSection, tags: Tags) -> Finding:
    """As in a run: a server that fails is asked once more, and an answer without a verdict for it in other words."""
    is_set = "request_timeout_s" in section.model_fields_set
    limit_s = section.request_timeout_s if is_set else min(section.request_timeout_s, WAIT_S)
    client = EndpointClient(url, section.model_copy(update={"request_timeout_s": limit_s}))
    answer: Answer | None = None
    try:
        async with asyncio.timeout(limit_s):
            answer = await _ask_twice(client)
            messages = build_judge_messages(QUESTION, ANSWER, ANSWER)
            for number in range(1, section.max_unreadable):
                if _read(answer, tags) != "unknown" or answer.finish_reason == LENGTH:
                    break
                answer = await client.ask(remind(messages, number))
    except (AskError, TimeoutError) as error:
        if answer is None:
            late = AskError("timeout", f"{url}: no answer within {limit_s:g} s")
            return await _describe_failure(url, error if isinstance(error, AskError) else late, section)
    finally:
        await client.close()
    return _judge_answer(url, answer, section, tags)


async def _ask_twice(client: EndpointClient) -> Answer:
    messages = build_judge_messages(QUESTION, ANSWER, ANSWER)
    try:
        return await client.ask(messages)
    except AskError as error:
        if error.kind not in ("server_error", "unreachable"):
            raise
    await asyncio.sleep(PAUSE_S)
    return await client.ask(messages)


async def _describe_failure(url: str, error: AskError, section: JudgeSection) -> Finding:
    is_alive, models = await _list_models(url, section) if error.kind in PROBED else (False, "")
    level = "warning" if error.kind == "busy" or (error.kind == "timeout" and is_alive) else "error"
    remedy = find_judge_remedy(error, section, models)
    return Finding(level, f"reward.judge.endpoints: {error.why}. Remedy: {remedy}")


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
    if answer.finish_reason != LENGTH and not answer.is_finished:
        shown += f" with the finish_reason {answer.finish_reason!r}"
    if answer.finish_reason == LENGTH:
        remedy = f"raise reward.judge.max_tokens ({section.max_tokens})"
    else:
        remedy = "use a model that follows the instruction to end with a line [[YES]] or [[NO]], an instruct model"
    return Finding("error", f"{shown}, which is no verdict. Remedy: {remedy}")


async def _list_models(url: str, section: JudgeSection) -> tuple[bool, str]:
    """(whether the server answers at all, names of its models where it tells them)."""
    try:
        timeout = aiohttp.ClientTimeout(total=MODELS_S)
        headers = {"Authorization": f"Bearer {read_key(section)}"}
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
