"""The process that runs verifiers, and may be killed for what they do: `python -m` this module, socket number.

    consumes     requests from the worker's socket, one after the other
    waits for    the next one
    unblocked by a request, or the end of the worker
    produces     one verdict each

The kernel ends it (SIGPROF) when an item takes more CPU time than it may, also inside C code that never returns to
Python, and refuses memory above the limit (RLIMIT_AS): the MemoryError costs the item, and the worker starts this
process again. It ends with its worker, and with it what a verifier started: see `subreaper`.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import socket
import sys
from typing import Any

import msgspec

from hybridflow.reward_service.sandbox.protocol import (
    FAILED,
    READY,
    REQUEST,
    SETUP,
    VERDICT,
    VERDICT_THEN_END,
    FrameReader,
    Setup,
    Verify,
    write_frame,
)
from hybridflow.reward_service.sandbox.subreaper import split_off
from hybridflow.types import Scored, ScoreRequest, Unknown, Verdict

MAX_REASON_CHARS = 500

_requests = msgspec.msgpack.Decoder(ScoreRequest)
_encoder = msgspec.msgpack.Encoder()


def main(descriptor: int, parent_pid: int) -> None:
    """Serves the worker `parent_pid` until it closes the socket."""
    split_off(parent_pid)
    channel = socket.socket(fileno=descriptor)
    reader = FrameReader(channel)
    verify: Verify | None = None
    pid, cpu_s = os.getpid(), math.inf
    while (frames := reader.read()) is not None:
        for kind, content in frames:
            if kind == SETUP:
                setup = msgspec.msgpack.decode(content, type=Setup)
                cpu_s = setup.limits.cpu_s
                try:
                    verify = load_verify(setup.build_verify, setup.arguments)
                except Exception as error:
                    channel.sendall(write_frame(FAILED, f"{type(error).__name__}: {error}".encode()))
                    return
                _limit(setup.limits.memory_mib)
                channel.sendall(write_frame(READY, str(os.getpid()).encode()))
            elif kind == REQUEST and verify is not None:
                verdict, is_fit = _score(verify, _requests.decode(content), cpu_s)
                if os.getpid() != pid:
                    os._exit(0)  # a verifier has forked, and this is the copy: there is one verdict per request
                answer = write_frame(VERDICT if is_fit else VERDICT_THEN_END, _encoder.encode(verdict))
                channel.sendall(answer)


def load_verify(build_verify: str, arguments: dict[str, Any]) -> Verify:
    """The function that "module:function" returns. ValueError, AttributeError or ImportError where there is none."""
    module, _, function = build_verify.partition(":")
    if not module or not function:
        raise ValueError(f"{build_verify!r} does not name code. Remedy: write module:function")
    return getattr(importlib.import_module(module), function)(**arguments)


def _limit(memory_mib: int) -> None:
    size = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _score(verify: Verify, request: ScoreRequest, cpu_s: float) -> tuple[Verdict, bool]:
    """The verdict, and whether this process is fit for another item."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        return _check(verify(request)), True
    except MemoryError:
        pass  # what the verifier held is free only once this block is left
    except BaseException as error:
        why = f"the verifier raised {type(error).__name__}: {error}"
        return Unknown(why=why[:MAX_REASON_CHARS]), True
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    limit_mib = resource.getrlimit(resource.RLIMIT_AS)[0] // 2**20
    return Unknown(why=f"the verifier ran out of memory: its process may have {limit_mib} MiB"), False


def _check(verdict: object) -> Verdict:
    if isinstance(verdict, Unknown):
        return verdict
    if isinstance(verdict, Scored) and 0.0 <= verdict.value <= 1.0:
        return verdict
    return Unknown(why=f"the verifier returned {verdict!r:.200}, which is neither a reward in [0, 1] nor Unknown")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
