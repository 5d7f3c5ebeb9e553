"""`judge serve` answers three paths to those who have its key, and says so when it can answer no more."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from hybridflow.policy.init import write_policy
from hybridflow.rollout.engine.http_server import SERVED, HttpGate
from hybridflow.tools.judge_serve import wait_for_an_end
from tests.unit.tools.conftest import Refuse, refuse

__all__ = ["refuse"]

ROOT = Path(__file__).parents[2]
KEY, OWN_KEY = "k" * 20, "o" * 20
CHAT, MODELS, HEALTH = SERVED
ADMINISTRATION = [
    *("/configure_logging", "/pause_generation", "/continue_generation", "/update_weights_from_disk", "/flush_cache"),
    *("/update_weights_from_tensor", "/init_weights_update_group", "/release_memory_occupation", "/start_profile"),
    *("/load_lora_adapter", "/abort_request", "/set_internal_state", "/open_session", "/server_info", "/model_info"),
    *("/generate", "/v1/completions", "/v1/responses", "/v1/embeddings", "/freeze_gc", "/dumper/x", "/metrics"),
    *("/docs", "/openapi.json", "/health_generate", "/ping", "/", "/v1/models/", "//v1/models", "/V1/models"),
    *("/v1/models/judge", "/v1/chat/completions/../../flush_cache", "/v1/models%2f..%2fflush_cache"),
]
PREFLIGHT = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}


def call(
    path: str, method: str = "GET", key: str | None = KEY, kind: str = "http", **headers: str
) -> tuple[int, dict[str, str], dict[str, Any] | None]:
    """(status, headers of the answer, what the application behind the gate was told, None where it was not asked)."""
    told: list[MutableMapping[str, Any]] = []
    sent: list[MutableMapping[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        told.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("no body is read before the key is")

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    given = headers | ({"Authorization": f"Bearer {key}"} if key is not None else {})
    encoded = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in given.items()]
    scope = {"type": kind, "path": path, "method": method, "headers": encoded}
    asyncio.run(HttpGate(app, KEY, OWN_KEY)(scope, receive, send))
    answer = {name.decode(): value.decode() for name, value in sent[0].get("headers", [])}
    return sent[0].get("status", 0), answer, {**told[0]} if told else None


def test_the_three_paths_are_let_through_to_the_key() -> None:
    assert [call(path, method)[0] for path, method in SERVED.items()] == [200, 200, 200]
    assert call(HEALTH, key=None)[0] == 200, "a probe has no key"


@pytest.mark.parametrize("key", [None, "", "x", KEY[:-1], f"{KEY}x", KEY.upper(), OWN_KEY, "\xff"])
def test_another_key_is_refused(key: str | None) -> None:
    for path, method in ((CHAT, "POST"), (MODELS, "GET")):
        status, headers, told = call(path, method, key)
        assert (status, headers["www-authenticate"], told) == (401, "Bearer", None)


def test_the_key_has_to_be_a_bearer_token() -> None:
    for told in (KEY, f"Basic {KEY}", f"Bearer  {KEY} {KEY}", f"Token {KEY}"):
        assert call(MODELS, key=None, Authorization=told)[0] == 401


@pytest.mark.parametrize("path", ADMINISTRATION)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_nothing_else_is_served_to_anybody(path: str, method: str) -> None:
    status, headers, told = call(path, method)
    assert (status, told) == (404, None) and "access-control-allow-origin" not in headers


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "HEAD", "TRACE", "get"])
def test_no_other_method_is_served(method: str) -> None:
    assert [call(path, method)[0] for path in SERVED] == [405] * 3


def test_no_web_page_is_answered() -> None:
    status, headers, told = call(CHAT, "OPTIONS", key=None, **PREFLIGHT)
    assert (status, told) == (405, None) and not any(name.startswith("access-control") for name in headers)
    _, _, told = call(CHAT, "POST", Origin="http://evil.example", Content_Type="text/plain")
    assert told is not None and all(name != b"origin" for name, _ in told["headers"]), "CORS behind it stays silent"


def test_no_websocket_is_opened() -> None:
    assert call(CHAT, kind="websocket")[2] is None


def test_the_server_reaches_its_own_call_with_its_own_key_alone() -> None:
    assert call("/freeze_gc", "POST", OWN_KEY)[0] == 200
    assert call("/freeze_gc", "POST", KEY)[0] == 404
    assert call(MODELS, "GET", OWN_KEY)[0] == 401


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reached by other machines, and there is no key. Remedy:"),
        (["--host", "::"], "--host :: is reached by other machines"),
        (["--api-key", "short"], "16 or more visible ASCII characters"),
        (["--api-key", "with some spaces in it"], "without spaces"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key-env", "NO_SUCH_KEY"], "--api-key-env NO_SUCH_KEY: this variable is empty or not set"),
        (["--api-key", "x" * 20, "--api-key-env", "HOME"], "name a key each"),
    ],
)
def test_a_key_that_protects_nothing_is_refused(options: list[str], words: str, refuse: Refuse, tmp_path: Path) -> None:
    assert words in refuse("judge", "serve", "--model", tmp_path, "--port", 31998, *options)


def test_the_death_of_a_worker_is_noticed() -> None:
    """A server that stays, with a worker that is killed."""
    program = (
        "import subprocess; subprocess.Popen(['sglang::scheduler', '60'], executable='/bin/sleep').wait(); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as server:
        children: list[psutil.Process] = []
        while not children:
            time.sleep(0.05)
            children = [c for c in psutil.Process(server.pid).children() if c.cmdline()[:1] == ["sglang::scheduler"]]
        try:
            assert children[0].is_running()
            pid = children[0].pid
            timer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill -9 {pid}"])
            assert wait_for_an_end(server) == f"SGLang's process sglang::scheduler 60 ({pid}) has died"
            timer.wait()
        finally:
            server.kill()


# ------------------------------------------------------------------------------------------------------- the real one


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, str, subprocess.Popen[str]]]:
    """(URL without a path, key, process) of `hybridflow judge serve` with a tiny model."""
    write_policy(ROOT / "configs/models/tiny", folder / "model", seed=0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "hybridflow.cli", "judge", "serve", "--model", str(folder / "model")]
    with (folder / "err").open("w") as errors:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT
        )
        assert process.stdout is not None
        try:
            url, exported = process.stdout.readline().strip(), process.stdout.readline().strip()
            assert url == f"http://127.0.0.1:{port}/v1", (folder / "err").read_text()
            yield url.removesuffix("/v1"), exported.removeprefix("export OPENAI_API_KEY="), process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def curl(url: str, method: str = "GET", body: str | None = None, **headers: str) -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(url, method=method, data=None if body is None else body.encode())
    for name, value in headers.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers)


@pytest.mark.full
@pytest.mark.timeout(600)
def test_the_served_judge_attacked(tmp_path: Path) -> None:
    with served(tmp_path) as (url, key, process):
        bearer = f"Bearer {key}"
        question = json.dumps({"model": "judge", "messages": [{"role": "user", "content": "What"}], "max_tokens": 2})
        json_type = {"Content_Type": "application/json"}
        assert curl(url + CHAT, "POST", question, Authorization=bearer, **json_type)[0] == 200
        assert curl(url + MODELS, Authorization=bearer)[0] == curl(url + HEALTH)[0] == 200
        assert curl(url + CHAT, "POST", question, **json_type)[0] == curl(url + MODELS)[0] == 401
        for path in ADMINISTRATION:
            for given in ({}, {"Authorization": bearer}):
                assert curl(url + path, "POST", "{}", **given, **json_type)[0] in (401, 403, 404), path
        for method, given in (("OPTIONS", PREFLIGHT), ("GET", {"Origin": "http://evil.example"})):
            _, headers = curl(url + HEALTH, method, **{name.replace("-", "_"): v for name, v in given.items()})
            assert not any(name.lower().startswith("access-control") for name in headers)
        processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert not any(key in " ".join(each.cmdline()) for each in processes)
        listening = {c.laddr for each in processes for c in each.net_connections() if c.status == psutil.CONN_LISTEN}
        assert {address.ip for address in listening} == {"127.0.0.1"}
        scheduler = next(each for each in processes if " ".join(each.cmdline()).startswith("sglang::scheduler"))
        os.kill(scheduler.pid, signal.SIGKILL)
        assert process.wait(60) == 1
        assert f"SGLang's process sglang::scheduler ({scheduler.pid}) has died" in (tmp_path / "err").read_text()
        assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)
