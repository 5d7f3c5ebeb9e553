"""`hybridflow check` on mistakes, one at a time: each is found before anything starts, and its remedy helps."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hybridflow.preflight import machine, verifiers
from hybridflow.preflight.report import report_run
from tests.unit.preflight.mistakes import MISTAKES, Folder, Mistake

BEHAVIOUR = {
    "text": "The same city.\n[[YES]]",
    "key": None,
    "model": None,
    "fails": [],  # status of one answer after the other; 0: none is given
    "refuses": "-",  # a field of the request
    "advice": "",
    "environment_key": "the key",
}


@pytest.fixture(scope="module")
def judge() -> Iterator[tuple[str, dict[str, Any]]]:
    """(URL, behaviour) of a judge on the loopback."""
    behaviour: dict[str, Any] = dict(BEHAVIOUR)

    class Judge(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(200, {"data": [{"id": behaviour["model"] or "judge"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = behaviour["fails"].pop(0) if behaviour["fails"] else 200
            if not status:
                return self.connection.close()
            if behaviour["refuses"] in body:
                return self._reply(400, {"error": f"Unsupported: {behaviour['refuses']}. {behaviour['advice']}"})
            if behaviour["key"] and self.headers["Authorization"] != f"Bearer {behaviour['key']}":
                return self._reply(401, {"error": "no key"})
            if behaviour["model"] and body["model"] != behaviour["model"]:
                return self._reply(404, {"error": "no such model"})
            message = {"role": "assistant", "content": behaviour["text"]}
            return self._reply(status, {"choices": [{"message": message, "finish_reason": "stop"}]})

        def _reply(self, status: int, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", behaviour
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(judge: tuple[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(verifiers, "WAIT_S", 0.3)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    judge[1].update(BEHAVIOUR)
    made = Folder(tmp_path, *judge)
    made.write()
    yield made
    sys.modules.pop("scoring", None)


@pytest.fixture
def check(folder: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """(number of errors, what was printed)"""

    def run() -> tuple[int, str]:
        sys.modules.pop("scoring", None)
        monkeypatch.setenv("MY_JUDGE_KEY", folder.judge["environment_key"])
        settings = [*folder.set, "reward.judge.api_key_env=MY_JUDGE_KEY"]
        num_errors = report_run([folder.path / "mine.toml"], settings)
        return num_errors, capsys.readouterr().out

    return run


def test_nothing_is_wrong_where_everything_is_right(folder: Folder, check: Any) -> None:
    folder.ask_judge()
    folder.set.append('reward.functions=[{call="scoring:right"}]')
    num_errors, said = check()
    assert num_errors == 0 and "0 errors, 0 warnings in" in said, said
    for word in (
        "train.jsonl: 3 rows, 0 of them cannot be used; 3 doc-qa",
        "row 0: the verifier right gives 1 to its gold and 0 to an empty answer",
        "says YES to two equal answers",
        "the judge is asked about 'What is the rent?'",
        "| <|user|>Please read the following text",
        "163,840 parameters",
    ):
        assert word in said, said


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_found_and_its_remedy_helps(mistake: Mistake, folder: Folder, check: Any) -> None:
    mistake.make(folder)
    num_errors, said = check()
    assert (num_errors > 0) == (mistake.level == "error" and bool(mistake.said)), said
    told = "\n".join(line for line in said.splitlines() if not line.startswith("ok "))
    assert [word for word in mistake.said if word.format(folder=folder.path) not in told] == [], said
    if mistake.mend is not None:
        mistake.mend(folder)
        num_errors, said = check()
        assert num_errors == 0, said


def test_a_model_that_is_not_there_is_told_once(folder: Folder, check: Any) -> None:
    folder.set = ["model.path=modle"]
    assert check()[0] == 1


def test_all_errors_are_told_at_once(folder: Folder, check: Any) -> None:
    """Keys, values that do not go together, rows, layout, verifier, judge."""
    folder.write_rows(gold="?!")
    folder.set = [
        "train.num_stps=5",
        "data.max_prompt_tokens=2000",
        "train.layout.tp=3",
        "reward.rules.verifiers.other=scoring:nothing",
        'reward.judge.endpoints=["http://127.0.0.1:9/v1"]',
    ]
    num_errors, said = check()
    for word in ("unknown key", "= 2016 is above", "tp = 3", "has no 'nothing'", "127.0.0.1:9"):
        assert word in said, said
    assert num_errors >= 4
    folder.set.pop(3)
    assert "golds cannot be used" in check()[1]


def test_a_model_that_no_memory_holds_is_an_error(folder: Folder, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 2**20)
    num_errors, said = check()
    assert num_errors == 1 and "Remedy: take a smaller model, lower rollout.kv_cache_tokens" in said
    assert "each engine's KV pool takes a share of what is free, as rollout.kv_cache_tokens is empty" in said
