"""Scores in a process that stays alive from item to item and is killed for the one that goes too far.

The process works through requests in order, so what it is killed for is always the oldest one that has no verdict.
That one is Unknown with the reason; those behind it go to the next process. Starting one takes some tenths of a second.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import IO

import msgspec

from hybridflow.environment import needed
from hybridflow.errors import RewardError
from hybridflow.reward_service.sandbox.protocol import (
    FAILED,
    READY,
    REQUEST,
    SETUP,
    VERDICT_THEN_END,
    FrameReader,
    Setup,
    write_frame,
)
from hybridflow.reward_service.sandbox.subreaper import END_TIMEOUT_S
from hybridflow.types import ScoreRequest, Unknown, Verdict

START_TIMEOUT_S = 120.0
"""For the import of verifiers on a loaded machine."""
MAX_FAILED_STARTS = 3
"""Processes that ended before they were ready, one after the other, before this worker gives up."""
MAX_SENT_FRAMES = 64
"""In one call; the kernel takes 1,024."""
MAX_PRINTED_BYTES = 2**20
"""For one item: more is a verifier gone wrong, which would fill the disk of a long run."""
SHOWN_BYTES = 4096
"""Bytes shown of what is printed for one item."""
SCORING_PROCESS = "hybridflow.reward_service.sandbox.scoring_process"

_CHUNK_BYTES = 2**16
_CUT = b"\n(more was printed, and is not shown)\n"
_logger = logging.getLogger(__name__)
_encoder = msgspec.msgpack.Encoder()
_verdicts: msgspec.msgpack.Decoder[Verdict] = msgspec.msgpack.Decoder(Verdict)


class ProcessScorer:
    """A `Scorer`. Memory: the requests that it was given.

    Args:
        setup: Code and limits.

    Raises:
        RewardError: from the constructor or `take_verdicts`: the code cannot be loaded, or the process does not start.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._waiting: deque[ScoreRequest] = deque()  # the first is being scored
        self._unsent: deque[memoryview] = deque()
        self._head_since = 0.0  # when the process could begin with the first
        self._num_failed_starts = 0
        self._pid = 0
        self._start()
        while not self._is_ready:
            _wait_until_readable(self._channel)
            self._read()
            self._check_start()

    @property
    def pid(self) -> int:
        """Id of the process that scores, or scored last; its parent is its subreaper."""
        return self._pid

    def submit(self, request: ScoreRequest) -> None:
        if not self._waiting:
            self._head_since = time.monotonic()
        self._waiting.append(request)
        self._unsent.append(_write_request(request))

    def take_verdicts(self) -> list[tuple[ScoreRequest, Verdict]]:
        self._write()  # all that was submitted since the last call at once
        verdicts = self._read()
        self._check_start()
        limit_s = self._setup.limits.wall_s
        if self._is_ready and self._waiting and time.monotonic() - self._head_since > limit_s:
            verdicts.append(self._end(f"the verifier took longer than {limit_s:g} s"))
        return verdicts

    def descriptors(self) -> tuple[list[int], list[int]]:
        number = self._channel.fileno()
        return [number], [number] if self._unsent else []

    def close(self) -> None:
        self._kill()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel, self._reader = ours, FrameReader(ours)
        self._is_ready = False
        self._started_at = time.monotonic()
        setup = memoryview(write_frame(SETUP, _encoder.encode(self._setup)))
        self._unsent = deque([setup, *map(_write_request, self._waiting)])
        ours.setblocking(False)
        module_path = os.pathsep.join(path or os.getcwd() for path in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                # -u: what it printed is there although it ends in the middle.
                # -P, and this process's own path: it finds the modules that this one finds, and no others.
                [sys.executable, "-u", "-P", "-m", SCORING_PROCESS, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=needed(os.environ, self._setup.environment) | {"PYTHONPATH": module_path},
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self._printed = PrintedOutput(self._process.stdout)
        self._write()

    def _check_start(self) -> None:
        if self._is_ready or time.monotonic() - self._started_at < START_TIMEOUT_S:
            return
        self._kill()
        raise RewardError(f"a scoring process was not ready within {START_TIMEOUT_S:g} s")

    def _write(self) -> None:
        while self._unsent:
            try:
                sent = self._channel.sendmsg(list(islice(self._unsent, MAX_SENT_FRAMES)))
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                return  # it ended; reading says so too, behind the verdicts that it left
            while sent and sent >= len(self._unsent[0]):
                sent -= len(self._unsent.popleft())
            if sent:
                self._unsent[0] = self._unsent[0][sent:]

    def _read(self) -> list[tuple[ScoreRequest, Verdict]]:
        verdicts: list[tuple[ScoreRequest, Verdict]] = []
        try:
            frames = self._reader.read()
        except BlockingIOError:
            return []
        except ConnectionResetError:
            frames = None
        if frames is None:
            return self._ended()
        for kind, content in frames:
            if kind == READY:
                self._is_ready, self._num_failed_starts, self._pid = True, 0, int(content)
                self._head_since = time.monotonic()
                self._printed.take()  # that of the imports
                continue
            if kind == FAILED:
                self._kill()
                raise RewardError(f"verifier {self._setup.build_verify} cannot be loaded: {content.decode()}")
            self._head_since = time.monotonic()
            verdicts.append((self._waiting.popleft(), self._unless_loud(_verdicts.decode(content))))
            if kind == VERDICT_THEN_END:
                self._kill()
                self._start()
                break
        return verdicts

    def _unless_loud(self, verdict: Verdict) -> Verdict:
        """Unknown for an item for which more was printed than may be."""
        if self._printed.take() <= MAX_PRINTED_BYTES:
            return verdict
        # How much more depends on how far the thread that reads it has come.
        return Unknown(
            why=f"the verifier printed more than {MAX_PRINTED_BYTES // 2**20} MiB for one completion. Remedy: let it "
            f"print less",
            rule=verdict.rule,
        )

    def _ended(self) -> list[tuple[ScoreRequest, Verdict]]:
        """The process is gone: the oldest item pays for it, if it was ready at all."""
        code = self._process.wait()
        if not self._is_ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= MAX_FAILED_STARTS:
                self._channel.close()
                raise RewardError(
                    f"{MAX_FAILED_STARTS} scoring processes ended before they were ready, the last with {_how(code)}; "
                    f"its output is in this worker's log. Remedy: raise reward.memory_limit_gib if it is out of memory"
                )
        if code == -signal.SIGPROF:
            why = f"the verifier used more than {self._setup.limits.cpu_s:g} s of CPU time"
        else:
            why = f"its scoring process ended with {_how(code)}"
        if self._waiting and self._is_ready:
            return [self._end(why)]
        self._kill()
        self._start()
        return []

    def _end(self, why: str) -> tuple[ScoreRequest, Verdict]:
        """Unknown for the oldest item; the process is started again for the others."""
        request = self._waiting.popleft()
        _logger.warning("%s is unknown: %s; its scoring process is started again", request.completion_id, why)
        self._kill()
        self._start()
        return request, Unknown(why=why)

    def _kill(self) -> None:
        """Ends the process and all that it started: its subreaper does, and what is left of its group ends with it."""
        self._channel.close()
        self._process.terminate()
        try:
            self._process.wait(END_TIMEOUT_S + 1.0)
        except subprocess.TimeoutExpired:
            _logger.warning("the subreaper of a scoring process does not end; its group is killed")
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _write_request(request: ScoreRequest) -> memoryview:
    return memoryview(write_frame(REQUEST, _encoder.encode(request)))


def _wait_until_readable(channel: socket.socket) -> None:
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.poll(START_TIMEOUT_S * 1000)


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class PrintedOutput:
    """Output of a scoring process: read as it comes, so that it never waits; its beginning is shown, all is counted.

    consumes     standard output and error of the process, also of C code and of what it starts
    waits for    more of it, in a thread of its own
    unblocked by it, or the end of all processes that hold the pipe
    produces     the first SHOWN_BYTES per item on this process's standard error, and a count
    """

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._num_bytes = 0
        threading.Thread(target=self._run, name="printed", daemon=True).start()

    def take(self) -> int:
        """Bytes that were printed since the last call."""
        with self._lock:
            taken, self._num_bytes = self._num_bytes, 0
        return taken

    def _run(self) -> None:
        with self._pipe:
            while data := os.read(self._pipe.fileno(), _CHUNK_BYTES):
                with self._lock:
                    left = SHOWN_BYTES - self._num_bytes
                    self._num_bytes += len(data)
                if left > 0:
                    _show(data[:left] + (_CUT if len(data) > left else b""))


def _show(data: bytes) -> None:
    try:
        os.write(2, data)
    except OSError:
        return  # nobody listens: a closed terminal, a full disk of the log
