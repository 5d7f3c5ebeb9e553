"""The Ray session of a run on one machine: what another user of it finds, and what he gets without the token."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from hybridflow.cluster.private_ray import FORCE
from hybridflow.cluster.session import private_folder, start_session, stop_session
from hybridflow.errors import ConfigError
from tests.security.other_user import needs_root, run_as_nobody

IMPORTS = """
import http.client, json, os, sys, urllib.error, urllib.request
import ray
from ray._raylet import GcsClient
"""
ATTACK = """
def attempt(what, act):
    try:
        print(what, "worked:", str(act())[:60])
    except Exception as error:
        print(what, "refused:", type(error).__name__, str(error).splitlines()[0][:120])

gcs, http, token = sys.argv[1:]
os.environ["RAY_AUTH_MODE"] = "token" if token else "disabled"
if token:
    os.environ["RAY_AUTH_TOKEN"] = token
attempt("store", lambda: GcsClient(address=gcs).internal_kv_keys(b"", namespace=None, timeout=5))
job = urllib.request.Request(f"http://{http}/api/job_agent/jobs/", json.dumps({"entrypoint": "id"}).encode())
if token:
    job.add_header("Authorization", "Bearer " + token)
attempt("job", lambda: urllib.request.urlopen(job, timeout=5).read())
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The folder of a session that was started under the most generous umask."""
    before = os.umask(0)
    try:
        start_session(1)
        found = private_folder()
        assert found is not None
        yield found
        stop_session()
        assert not found.exists()
    finally:
        os.umask(before)


def test_its_files_are_for_this_user_alone(folder: Path) -> None:
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    assert len((folder / "token").read_text()) == 64
    assert (folder / "r" / "session_latest").exists()


def test_all_of_it_listens_on_the_loopback_and_no_metrics_are_served(folder: Path) -> None:
    this = psutil.Process()
    listening = {
        connection.laddr
        for process in (this, *this.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert not {44217, 44227} & {address.port for address in listening}


@needs_root
@pytest.mark.parametrize("token", ["", "0" * 64], ids=["none", "another"])
def test_without_its_token_another_user_can_neither_read_nor_run_anything(folder: Path, token: str) -> None:
    gcs = ray.get_runtime_context().gcs_address
    code, output = run_as_nobody(IMPORTS, ATTACK, gcs, agent_address(), token)
    assert code == 0, output
    answers = [line.split(":")[0] for line in output.splitlines() if line.startswith(("store", "job"))]
    assert answers == ["store refused", "job refused"], output
    assert "HTTP Error 40" in output, "it was asked, and said no"


@pytest.mark.parametrize("value", ["disabled", "DISABLED"])
def test_switched_off_authentication_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", value)
    monkeypatch.delenv(FORCE, raising=False)
    with pytest.raises(ConfigError, match=rf"RAY_AUTH_MODE=disabled .* Remedy: unset it; or set {FORCE}=1"):
        start_session(1)


def agent_address() -> str:
    """Where Ray's agent of this node takes HTTP requests."""
    port = ray.nodes()[0].get("DashboardAgentListenPort") or 52365
    return f"127.0.0.1:{port}"
