"""One question to every endpoint of the judge, whose answer is known: are two equal answers the same?

Where a judge gave no answer, a remedy follows from what it or the network said.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator

import aiohttp

from hybridflow.config.judge_section import JudgeSection
from hybridflow.preflight.subject import WAIT_S, Finding, Subject
from hybridflow.reward_service.judge.response import LENGTH, Answer
from hybridflow.reward_service.judge.server import AskError, EndpointClient, find_proxy, read_key
from hybridflow.rewards.judge_prompt import build_judge_messages, remind
from hybridflow.rewards.judge_verdict import Vote, parse_vote
from hybridflow.rewards.text.thinking import Tags

_BY_WORDS = (
    (r"CERTIFICATE_VERIFY_FAILED", "export SSL_CERT_FILE=<the file with the certificate of who signed it>"),
    (r"WRONG_VERSION_NUMBER|record layer failure", "write http:// instead of https://: it speaks without TLS"),
    (r"DNSError", "correct the name of the host, which is not known here"),
    (r"Invalid(Url|URL)", "correct the address, as http://HOST:PORT/v1, and that of a proxy, as http://HOST:PORT"),
    (r"HTTP 40[13]\b", "export {env}=<its key>, or name the variable that holds it in reward.judge.api_key_env"),
    (r"HTTP 402\b|quota", "pay for what the account has used, or name another server"),
    (r"HTTP 407\b", "put user and password of the proxy into {proxy_name}, or its host into no_proxy"),
    (r"HTTP 3\d\d\b", "name the address that it leads to"),
    (r"HTTP 4.*max_completion_tokens", "--set reward.judge.length_field=max_completion_tokens"),
    (r"HTTP 4.*temperature", "--set reward.judge.temperature=unset"),
    (
        r"HTTP 4.*(context.length|too long|too large|maximum.{1,20}tokens)",
        "lower reward.judge.max_tokens ({max_tokens}), or serve the model with a longer window",
    ),
    (r"HTTP 503\b", "wait until it has loaded, or look at its log"),
)
"""Patterns of reasons, each with its remedy."""


def find_judge_remedy(error: AskError, section: JudgeSection, models: str) -> str:
    """For a user; `models`: those that the server says it has, "" where it does not tell."""
    url = error.why.partition(": ")[0]
    proxy = find_proxy(url)
    if proxy is not None and "ProxyConnectionError" in error.why:
        return f"start the proxy {proxy} that the environment names, or put the host into no_proxy"
    for pattern, remedy in _BY_WORDS:
        if re.search(pattern, error.why, re.DOTALL):
            return remedy.format(
                env=section.api_key_env, max_tokens=section.max_tokens, proxy_name=f"{url.partition(':')[0]}_proxy"
            )
    if error.kind in ("refused", "bad_request"):
        known = f" ({models})" if models else ""
        return (
            f"name a model that it serves{known} in reward.judge.model, now {section.model!r}; or correct the address"
        )
    return _BY_KIND[error.kind]


_BY_KIND = {
    "timeout": "start it again, or wait until it is loaded; if it needs that long, set reward.judge.request_timeout_s, "
    "and so long it is waited for here",
    "unreachable": "start it (hybridflow judge serve --model ... --port ...), or correct the address",
    "malformed": "name an OpenAI-compatible server",
    "busy": "wait, or lower reward.judge.max_concurrency or set reward.judge.max_requests_per_s",
    "server_error": "look at its log; start it again",
}


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
