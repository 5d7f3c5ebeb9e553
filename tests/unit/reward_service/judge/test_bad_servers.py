"""Every kind of bad judge server makes a verdict unknown, and never yes or no; odd but whole answers are read."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
from collections.abc import Iterable, Mapping

import pytest

from hybridflow.config.judge_section import JudgeSection
from hybridflow.reward_service.judge.client import JudgeClient, Judgement
from tests.unit.reward_service.judge.wicked_server import (
    HANG,
    NO_TEXT,
    YES_TEXT,
    WickedServer,
    chat,
    http,
    serving,
    stream,
)


def decide_all(server: WickedServer, names: Iterable[str], **settings: object) -> dict[str, Judgement]:
    """The judgement of each case, side by side, by a client of its own, so that none suffers from another's breaker."""
    section = JudgeSection.model_validate({"endpoints": [server.url], "max_unreadable": 2, **settings})

    async def decide(name: str) -> Judgement:
        client = JudgeClient(section, random.Random(0))
        try:
            return await client.decide("Which city?", f"case-{name}.", "Paris")
        finally:
            await client.close()

    async def run() -> dict[str, Judgement]:
        return dict(zip(names, await asyncio.gather(*map(decide, names)), strict=True))

    return asyncio.run(run())


def usage(tokens: object) -> bytes:
    body = json.loads(chat(YES_TEXT)) | {"usage": tokens}
    return http(json.dumps(body))


GZIP = "Content-Encoding: gzip\r\n"
READ = {
    "plain yes": (http(chat(YES_TEXT)), "yes"),
    "plain no": (http(chat(NO_TEXT)), "no"),
    "no finish reason": (http('{"choices": [{"message": {"content": "[[YES]]"}}]}'), "yes"),
    "parts": (http(chat([{"type": "text", "text": "Same.\n"}, {"type": "text", "text": "[[YES]]"}])), "yes"),
    "parts with a thought": (
        http(chat([{"type": "reasoning", "text": "[[NO]]"}, {"type": "text", "text": "[[YES]]"}])),
        "yes",
    ),
    "parts as strings": (http(chat(["Same.", "\n[[YES]]"])), "yes"),
    "usage null": (usage(None), "yes"),
    "usage of floats": (usage({"prompt_tokens": 12.0, "completion_tokens": 3.5}), "yes"),
    "usage of nulls": (usage({"prompt_tokens": None, "completion_tokens": None}), "yes"),
    "usage is a list": (usage([1, 2]), "yes"),
    "usage is negative": (usage({"prompt_tokens": -5, "completion_tokens": 10**30}), "yes"),
    "byte order mark": (http(b"\xef\xbb\xbf" + chat(YES_TEXT).encode()), "yes"),
    "blank lines before": (http("\r\n\r\n  " + chat(YES_TEXT)), "yes"),
    "stream": (http(stream("Same.\n", "[[Y", "ES]]")), "yes"),
    "stream without done": (http(stream("Same.\n", "[[NO]]", done=False)), "no"),
    "stream of one whole": (http(f": keep-alive\n\ndata: {chat(YES_TEXT)}\n\ndata: [DONE]\n\n"), "yes"),
    "gzip": (http(gzip.compress(chat(YES_TEXT).encode()), headers=GZIP), "yes"),
    "thoughts": (http(chat("<thinking>They differ.\n[[NO]]</thinking>\n[[YES]]")), "yes"),
    "Mistral": (http(chat("[THINK]They agree.\n[[YES]][/THINK]They differ.\n[[NO]]")), "no"),
    "refusal empty": (http(chat(None, message={"content": YES_TEXT, "refusal": "", "tool_calls": []})), "yes"),
    "choices that agree": (http(json.dumps({"choices": json.loads(chat(YES_TEXT))["choices"] * 2})), "yes"),
    "error null": (http(json.dumps({"error": None} | json.loads(chat(NO_TEXT)))), "no"),
    "no such type": (http(chat(YES_TEXT), headers="Content-Type: text/plain\r\n"), "yes"),
    "log probabilities": (http(chat(YES_TEXT, logprobs={"content": []}, stop_reason=151645)), "yes"),
}

LATER_YES = '{"choices": [{"message": {"content": "[[YES]]"}, "finish_reason": '
ENDS = {
    # verdicts that are none
    "mark in a sentence": http(chat("They differ, so [[YES]] is not warranted.")),
    "mark at the end of a sentence": http(chat("Nobody would say [[YES]]")),
    "mark not last": http(chat("[[YES]]\nBut I am not sure.")),
    "both marks": http(chat("[[NO]] or rather [[YES]]")),
    "bare word": http(chat("YES")),
    "single brackets": http(chat("[YES]")),
    "lower case": http(chat("[[yes]]")),
    "full width": http(chat("\uff3b\uff3bYES\uff3d\uff3d")),
    "maybe": http(chat("[[MAYBE]]")),
    "number": http(chat("1.0")),
    "JSON": http(chat('{"verdict": "YES"}')),
    "label": http(chat("Verdict: [[YES]]")),
    "quoted": http(chat('"[[YES]]"')),
    "empty": http(chat("")),
    "blank": http(chat(" \n\n ")),
    "null content": http(chat(None)),
    "reasoning alone": http(chat(None, message={"content": None, "reasoning_content": "[[YES]]"})),
    "refusal": http(chat(None, message={"content": None, "refusal": "[[NO]]"})),
    "refusal beside": http(chat(None, message={"content": YES_TEXT, "refusal": "I cannot judge this."})),
    "refusal in parts": http(chat([{"type": "text", "text": "[[YES]]"}, {"type": "refusal", "refusal": "No."}])),
    "refusal in a stream": http(
        f'data: {{"choices": [{{"index": 0, "delta": {{"refusal": "No."}}}}]}}\n\n{stream("[[YES]]")}'
    ),
    "tool beside": http(chat(None, message={"content": YES_TEXT, "tool_calls": [{"id": "1", "type": "function"}]})),
    # thoughts that are not closed
    "think open": http(chat("<think>They agree.\n[[YES]]")),
    "Think open": http(chat("<Think>They agree.\n[[YES]]")),
    "thinking open": http(chat("<thinking>They agree.\n[[YES]]")),
    "reasoning open": http(chat("<reasoning>They agree.\n[[NO]]")),
    "THINK open": http(chat("[THINK]They agree.\n[[YES]]")),
    "channel open": http(chat("<|channel|>analysis<|message|>They agree.\n[[YES]]")),
    "thought closed and nothing": http(chat("<think>[[YES]]</think>")),
    # ends that are no stop
    "cut": http(chat(YES_TEXT, finish_reason="length")),
    "filtered": http(chat(YES_TEXT, finish_reason="content_filter")),
    "tool": http(chat(YES_TEXT, finish_reason="tool_calls")),
    "aborted": http(chat(NO_TEXT, finish_reason="abort")),
    "finish null": http(chat(YES_TEXT, finish_reason=None)),
    "finish a number": http(chat(YES_TEXT, finish_reason=1)),
    "finish STOP": http(chat(YES_TEXT, finish_reason="STOP")),
    "stream cut": http(stream("Same.\n", "[[YES]]", reason=None)),
    "stream at its limit": http(stream("Same.\n", "[[YES]]", reason="length")),
    "parts of pictures": http(chat([{"type": "image_url", "text": "[[YES]]"}])),
    # refused
    "400": http(chat(YES_TEXT), status="400 Bad Request"),
    "401": http(chat(YES_TEXT), status="401 Unauthorized"),
    "402": http(chat(YES_TEXT), status="402 Payment Required"),
    "403": http(chat(YES_TEXT), status="403 Forbidden"),
    "404": http(chat(YES_TEXT), status="404 Not Found"),
    "302": http(chat(YES_TEXT), status="302 Found", headers="Location: /elsewhere\r\n"),
    "307": http(chat(YES_TEXT), status="307 Temporary Redirect", headers="Location: http://127.0.0.1:9/\r\n"),
    "304": http(b"", status="304 Not Modified"),
}  # fmt: skip
"""No verdict, and none will come: told at once."""
RETRIED = {
    # no chat completions
    "no body": http(b""),
    "no content": http(b"", status="204 No Content"),
    "HTML": http("<html>[[YES]]</html>"),
    "text": http("[[YES]]"),
    "JSON text": http('"[[YES]]"'),
    "list": http(f"[{chat(YES_TEXT)}]"),
    "half": http(chat(YES_TEXT)[:-20]),
    "twice": http(chat(YES_TEXT) + chat(YES_TEXT)),
    "NaN": http(chat(YES_TEXT).replace("9", "NaN")),
    "no choices": http('{"choices": []}'),
    "null choices": http('{"choices": null}'),
    "choices of text": http('{"choices": ["[[YES]]"]}'),
    "completion": http('{"choices": [{"text": "[[YES]]", "finish_reason": "stop"}]}'),
    "content a number": http(chat(1)),
    "content true": http(chat(True)),
    "content an object": http(chat({"text": "[[YES]]"})),
    "parts of numbers": http(chat([1, 2])),
    "parts without text": http(chat([{"type": "text"}])),
    "error with 200": http('{"error": {"message": "[[YES]]"}}'),
    "error beside": http(json.dumps({"error": {"message": "overloaded"}} | json.loads(chat(YES_TEXT)))),
    "choices that differ": http(
        json.dumps({"choices": json.loads(chat(YES_TEXT))["choices"] + json.loads(chat(NO_TEXT))["choices"]})
    ),
    "second choice of a stream": http(
        f'data: {{"choices": [{{"index": 1, "delta": {{"content": "[[YES]]"}}}}]}}\n\n{stream("")}'
    ),
    "error in a stream": http(f'data: {{"error": "down"}}\n\n{stream("[[YES]]")}'),
    "deep": http('{"choices": ' + "[" * 100_000),
    "Latin-1": http(chat(YES_TEXT).replace("city", "cit\xe9").encode("latin-1")),
    "UTF-16": http(chat(YES_TEXT).encode("utf-16")),
    "too long": http(chat("x" * 5_000_000 + f"\n{YES_TEXT}")),
    "gzip bomb": http(gzip.compress(b" " * 100_000_000 + chat(YES_TEXT).encode()), headers=GZIP),
    "no gzip": http(chat(YES_TEXT), headers=GZIP),
    # HTTP
    "429": http(chat(YES_TEXT), status="429 Too Many Requests"),
    "429 for an hour": http("", status="429 Too Many Requests", headers="Retry-After: 3600\r\n"),
    "500": http(chat(YES_TEXT), status="500 Internal Server Error"),
    "503": http("busy", status="503 Service Unavailable"),
    "999": http(chat(YES_TEXT), status="999 Odd"),
    "hangs up": b"",
    "no HTTP": b"\x16\x03\x01\x02\x00[[YES]]",
    "silent": HANG,
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le" + HANG,
    "half a body": http(chat(YES_TEXT)[:40], length=400) + HANG,
    "hangs up within": http(chat(YES_TEXT)[:40], length=400),
    "chunks that break": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + chat(YES_TEXT).encode(),
}  # fmt: skip
"""Asked again until the deadline: it may get better."""
BAD = ENDS | RETRIED


def test_odd_but_whole_answers_are_read() -> None:
    with serving({name: script for name, (script, _) in READ.items()}) as server:
        judgements = decide_all(server, READ, deadline_s=600.0, late_after_s=100.0, request_timeout_s=100.0)
    found = {name: judgement.vote for name, judgement in judgements.items()}
    assert found == {name: vote for name, (_, vote) in READ.items()}
    assert set(server.asked.values()) == {1}


@pytest.fixture(scope="module")
def bad() -> tuple[Mapping[str, Judgement], WickedServer]:
    with serving(BAD) as server:
        ending = decide_all(server, ENDS, deadline_s=600.0, late_after_s=100.0, request_timeout_s=100.0)
        return ending | decide_all(server, RETRIED, deadline_s=3.0), server


def test_every_bad_server_is_unknown_and_never_yes_or_no(bad: tuple[Mapping[str, Judgement], WickedServer]) -> None:
    judgements, server = bad
    assert len(BAD) > 60
    assert {name for name, judgement in judgements.items() if judgement.vote != "unknown"} == set()
    assert all(server.asked[name] for name in BAD)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cut", "cut at reward.judge.max_tokens = 4096: raise it"),
        ("filtered", "its finish_reason is 'content_filter', not 'stop'"),
        ("finish null", "its finish_reason is 'missing'"),
        ("mark in a sentence", "2 answers without one verdict, last: its last line is neither"),
        ("401", "HTTP 401"),
        ("403", "environment variable OPENAI_API_KEY, reward.judge.api_key_env, is not set"),
        ("307", "HTTP 307 to 'http://127.0.0.1:9/', which is not followed"),
        ("silent", "no verdict within 3 s: "),
        ("500", "HTTP 500"),
        ("HTML", "not a chat completion"),
    ],
)  # fmt: skip
def test_the_reason_names_what_was_wrong(
    bad: tuple[Mapping[str, Judgement], WickedServer], name: str, why: str
) -> None:
    assert why in bad[0][name].why, bad[0][name].why


@pytest.mark.parametrize("name", ["400", "401", "402", "403", "404", "302", "307", "cut"])
def test_what_will_not_get_better_is_asked_once(bad: tuple[Mapping[str, Judgement], WickedServer], name: str) -> None:
    assert bad[1].asked[name] == 1 and bad[0][name].why.startswith("no majority of 1 votes")


def test_a_time_out_tells_what_was_tried(bad: tuple[Mapping[str, Judgement], WickedServer]) -> None:
    judgements, server = bad
    assert f"to {server.url}: no answer until it was given up (longest " in judgements["silent"].why
    told = re.match(rf"no verdict within 3 s: (\d+) requests to {server.url}: HTTP 500", judgements["500"].why)
    assert told, judgements["500"].why
    assert 1 < int(told[1]) <= server.asked["500"], "one more may have been under way at the deadline"


def test_an_answer_without_a_verdict_is_asked_for_in_other_words(
    bad: tuple[Mapping[str, Judgement], WickedServer],
) -> None:
    told = bad[1].told["bare word"]
    assert len(told) == len(set(told)) == 2
