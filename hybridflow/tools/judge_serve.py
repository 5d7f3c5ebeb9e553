"""`hybridflow judge serve`: an OpenAI-compatible server for one model, by SGLang, on this machine's GPU or CPU."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from hybridflow.data.chat_encoding import encode_chat
from hybridflow.environment import needed
from hybridflow.errors import ConfigError, RolloutError
from hybridflow.policy.engine_tokenizer import write_engine_tokenizer
from hybridflow.policy.load import load_tokenizer
from hybridflow.private_folder import PrivateFolder
from hybridflow.rollout.engine.private_ranks import rank_environment
from hybridflow.runtime.teardown import end_server
from hybridflow.tools.judge_key import DEFAULT_KEY_VARIABLE, check_key

if TYPE_CHECKING:
    from megatron_ext.platform.device import Device

HEALTH_TIMEOUT_S = 10.0
POLL_S = 0.5
NOTICE_S = 30.0
"""A longer wait is said again this often."""
WORKER_TITLE = "sglang::"
CLOSE_TIMEOUT_S = 10.0
"""Time that the server's processes get to end by themselves."""


@dataclass(frozen=True)
class JudgeServerJob:
    """The job that a command line asks for."""

    model: Path
    port: int
    host: str = "127.0.0.1"
    name: str = "judge"
    """Under which requests name the model."""
    dtype: str = "auto"
    tp: int = 1
    context_tokens: int | None = None
    num_threads: int = 2
    start_timeout_s: float = 900.0
    log: Path | None = None
    """File for SGLang's own output; None: this process's standard error."""
    key: str = ""
    """Key that requests must carry; empty: one is made, which is allowed on this machine's own addresses alone."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"


@contextmanager
def serving(job: JudgeServerJob, note: Callable[[str], None]) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers; after the block none of its processes is left.

    Raises:
        ConfigError: the model is no Hugging Face directory, or the port is taken; found before anything starts.
        RolloutError: SGLang ended or did not answer within `start_timeout_s`.
    """
    _check(job)
    with closing(PrivateFolder()) as folder:
        process = _start(job, folder.path, _write_tokenizer(job, folder.path))
        try:
            note(f"SGLang loads {job.model} (process {process.pid})")
            _wait_until_healthy(job, process, note)
            yield process
        finally:
            end_server(process, CLOSE_TIMEOUT_S)


def serve_judge(job: JudgeServerJob, note: Callable[[str], None]) -> None:
    """Prints the base URL on standard output, and below it the key where it was made here; serves until interrupted.

    Raises RolloutError where SGLang, or one of its processes, ends by itself.
    """
    check_key(job.key, job.host)
    is_made = not job.key
    job = replace(job, key=secrets.token_urlsafe(24)) if is_made else job
    with serving(job, note) as process:
        note(f"model {job.name!r} is ready for those who have the key; Ctrl-C ends it")
        print(job.url, flush=True)
        if is_made:
            print(f"export {DEFAULT_KEY_VARIABLE}={job.key}", flush=True)
            note(f"the key is new; where requests come from, it belongs into {DEFAULT_KEY_VARIABLE} (the line above)")
        raise RolloutError(f"{wait_for_an_end(process)} at {job.url}. {_remedy(job)}")


def wait_for_an_end(process: subprocess.Popen[bytes]) -> str:
    """Blocks until the server or one of its workers has ended; says which. A server without its scheduler accepts
    requests and answers none."""
    workers = {worker.pid: (worker, _title(worker)) for worker in _workers_of(process)}
    while True:
        try:
            return f"SGLang ended with exit code {process.wait(POLL_S)}"
        except subprocess.TimeoutExpired:
            for worker, title in workers.values():
                if not _is_alive(worker):
                    return f"SGLang's process {title} ({worker.pid}) has died"


def _workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Schedulers and detokenizer: those of its processes that SGLang has given a title."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if _title(child).startswith(WORKER_TITLE)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def build_server_arguments(job: JudgeServerJob, device: Device) -> dict[str, Any]:
    """ServerArgs fields for a server that computes on `device`."""
    from hybridflow.rollout.cpu import cpu_arguments

    arguments: dict[str, Any] = {
        "model_path": str(job.model),
        "served_model_name": job.name,
        "host": job.host,
        "port": job.port,
        "tp_size": job.tp,
        "random_seed": 0,
        "skip_server_warmup": True,  # /health, which is waited for, generates a token too
        "log_level": "warning",
        "dtype": job.dtype,
        "trust_remote_code": False,
    }
    if job.context_tokens is not None:
        arguments["context_length"] = job.context_tokens
    if not device.has_cuda:
        dtype = "float32" if job.dtype == "auto" else job.dtype  # without AMX, bfloat16 is the slower on a CPU
        # Its warnings are about models and kernels that no CPU has.
        arguments |= cpu_arguments(dtype) | {"log_level": "error"}
    return arguments


def _check(job: JudgeServerJob) -> None:
    if not (job.model / "config.json").is_file() or not any(job.model.glob("*.safetensors")):
        raise ConfigError(
            f"--model {job.model}: no config.json with safetensors there. Remedy: name a Hugging Face model directory"
        )
    if not (job.model / "tokenizer_config.json").is_file():
        raise ConfigError(f"--model {job.model}: no tokenizer there. Remedy: put the model's tokenizer files beside it")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((job.host, job.port))
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host {job.host} --port {job.port}: cannot listen there: {error}. Remedy: name a free port, and an "
                "address of this machine"
            ) from error


def _write_tokenizer(job: JudgeServerJob, folder: Path) -> Path:
    """The tokenizer for SGLang, in `folder`. ConfigError for one that is damaged, or whose chat template is hostile."""
    tokenizer = load_tokenizer(job.model, f"--model {job.model}")
    if tokenizer.chat_template is not None:
        encode_chat(tokenizer, [{"role": "user", "content": "Is the answer right?"}])  # within bounds, unlike SGLang
    return write_engine_tokenizer(tokenizer, folder, with_template=True)


def _start(job: JudgeServerJob, folder: Path, tokenizer_dir: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches this process alone, which then ends the server in order.

    Its ranks meet in `folder`, and its own sockets are there.
    """
    from hybridflow.rollout.cpu import cpu_environment
    from megatron_ext.platform.device import find_device

    device = find_device()
    environment = {} if device.has_cuda else cpu_environment(job.num_threads)
    arguments = build_server_arguments(job, device) | {"tokenizer_path": str(tokenizer_dir)}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", **rank_environment(folder)}
    output = job.log.open("ab") if job.log else None
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "hybridflow.rollout.engine.http_server"],
            env=needed(os.environ, environment),
            stdin=subprocess.PIPE,
            stdout=output or sys.stderr.fileno(),
            stderr=output or sys.stderr.fileno(),
            start_new_session=True,
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as told:  # one that ended at once is noticed by who waits for it
            told.write(json.dumps({"arguments": arguments, "key": job.key}).encode())
        return process
    finally:
        if output is not None:
            output.close()


def _wait_until_healthy(job: JudgeServerJob, process: subprocess.Popen[bytes], note: Callable[[str], None]) -> None:
    started = said_at = time.monotonic()
    while True:
        code = process.poll()
        if code is not None:
            raise RolloutError(f"SGLang ended with exit code {code} before it was ready. {_remedy(job)}")
        if _is_healthy(job):
            return
        now = time.monotonic()
        if now - started > job.start_timeout_s:
            raise RolloutError(
                f"SGLang has not answered within {job.start_timeout_s:g} s. Remedy: raise --start-timeout-s, or take a "
                "smaller model"
            )
        if now - said_at > NOTICE_S:
            said_at = now
            note(f"still waits for SGLang to load {job.model}, {now - started:.0f} s so far")
        time.sleep(POLL_S)


def _is_healthy(job: JudgeServerJob) -> bool:
    """Whether it has generated a token: /health does that."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{job.host}:{job.port}/health", timeout=HEALTH_TIMEOUT_S) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _remedy(job: JudgeServerJob) -> str:
    return f"Remedy: see {job.log}" if job.log else "Remedy: read what it said above"
