"""A judge's server, and whoever stands between: question, key and verdict stay with the address that was configured."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import sys
from pathlib import Path

import pytest

from hybridflow import cli
from hybridflow.config.judge_section import JudgeSection
from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.errors import ConfigError
from hybridflow.reward_service.judge.client import JudgeClient, Judgement
from hybridflow.reward_service.judge.server import find_proxy
from tests.bench.judge_server import JudgeServer
from tests.unit.reward_service.judge.wicked_server import YES_TEXT, chat, http, serving
from tests.unit.tools.conftest import Refuse, refuse

__all__ = ["refuse"]

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.toml"
SECRETS = [
    "http://me:hunter2@h:1/v1",
    "http://hunter2@h:1/v1",
    "https://h/v1?api_key=hunter2",
    "https://h/v1?x=1&access_token=hunter2",
    "https://h/v1#key=hunter2",
    "https://h/sk-hunter2hunter2hunter2/v1",
    "https://h/v1?api%5Fkey=hunter2",
    "https://h/v1?%61pi%5f%6bey=hunter2",
    "https://h/v1;token=hunter2",
    "https://:hunter2@h/v1",
]


def decide(url: str, case: str = "case-a.") -> Judgement:
    async def run() -> Judgement:
        client = JudgeClient(JudgeSection(endpoints=[url], deadline_s=10.0), random.Random(0))
        try:
            return await client.decide("Which?", case, "it agrees")
        finally:
            await client.close()

    return asyncio.run(run())


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_takes_neither_question_nor_verdict_elsewhere(status: str) -> None:
    with JudgeServer().serving() as thief:
        location = f"Location: {thief.url}/chat/completions\r\n"
        with serving({"a": http(chat(YES_TEXT), status=status, headers=location)}) as server:
            judgement = decide(server.url)
    assert judgement.vote == "unknown" and "which is not followed" in judgement.why
    assert thief.bodies == []


def test_no_password_of_netrc_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("default login me password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with JudgeServer().serving() as server:
        assert decide(server.url).vote == "yes"
    assert server.keys == ["Bearer none"]


def test_a_cookie_is_not_sent_back() -> None:
    with serving({"a": http(chat("none"), headers="Set-Cookie: id=1; Path=/\r\n")}) as server:
        decide(server.url)
        assert server.asked["a"] == 3 and not any("cookie" in head.lower() for head in server.heads)


def test_proxies_of_the_environment_lead_elsewhere_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert find_proxy("https://api.example/v1") == find_proxy("http://api.example/v1") == "http://proxy:3128"
    for host in ("127.0.0.1", "127.8.0.1", "[::1]", "localhost", "a.localhost", "inside.example", "x.inside.example"):
        assert find_proxy(f"http://{host}:1/v1") is None


@pytest.mark.parametrize("url", SECRETS)
def test_a_password_or_key_in_a_url_is_refused_at_load_and_not_repeated(url: str, tmp_path: Path) -> None:
    written = tmp_path / "judge.toml"
    written.write_text(f"[reward.judge]\nendpoints = [{json.dumps(url)}]\n")
    for paths, overrides in (
        ([QUICKSTART, written], []),
        ([QUICKSTART], [f"reward.judge.endpoints=[{json.dumps(url)}]"]),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(paths, overrides, Config)
        message = str(caught.value)
        assert "holds a password or a key" in message and "reward.judge.api_key_env" in message
        assert "hunter2" not in message


@pytest.mark.parametrize(
    "url", ["http://h/v1\\r\\nHost: evil", "http://h\\u001b[2J/v1", "http://h/v1 x", "http://h\\u202e/v1"]
)
def test_a_url_with_characters_that_no_url_has_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="holds a character that no URL has"):
        load_config([QUICKSTART], [f'reward.judge.endpoints=["{url}"]'], Config)


@pytest.mark.parametrize("url", SECRETS)
def test_the_same_of_judge_url(url: str, refuse: Refuse, tmp_path: Path) -> None:
    names = [f"--{name}={tmp_path / name}" for name in ("data", "responses", "output")]
    message = refuse("score", *names, "--judge-url", url)
    assert "holds a password or a key" in message and "hunter2" not in message


def test_score_ends_where_the_cache_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cache.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, vote TEXT, why TEXT, written_at REAL)")
    database.execute("BEGIN IMMEDIATE")
    row = {
        "data_source": "x",
        "prompt": [{"role": "user", "content": "Which city?"}],
        "ability": "doc-qa",
        "reward_model": {"style": "rule", "ground_truth": "it agrees"},
        "extra_info": {},
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "responses.jsonl").write_text('{"index": 0, "response": "The answer is Rome."}\n')
    files = [f"--data={tmp_path / 'rows.jsonl'}", f"--responses={tmp_path / 'responses.jsonl'}"]
    files += [f"--output={tmp_path / 'out.jsonl'}", f"--judge-cache={path}"]
    with JudgeServer().serving() as server, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "argv", ["hybridflow", "score", *files, "--judge-url", server.url])
        cli.main()
    assert ended.value.code == 1
    assert f"the judge's cache {path} cannot be written: database is locked. Remedy:" in capsys.readouterr().err
