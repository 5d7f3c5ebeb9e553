"""Runs the checks one after the other, each in a process of its own and for a limited time; see run.sh.

A line of JSON per check: "check", "ok", "seconds", its figures, and "faults" where it is not ok. The others go on after
a check that fails, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

TOTAL_S = 480.0
"""Seconds of all checks together on a GPU."""


class Check(NamedTuple):
    """A function of (Report, Sizes), and the seconds that it may take."""

    place: str
    limit_s: float


CHECKS = {
    "environment": Check("tests.gpu.environment_check:environment", 60),
    "nccl_one_rank": Check("tests.gpu.transfer_checks:nccl_one_rank", 45),
    "hf_agreement": Check("tests.gpu.model_checks:hf_agreement", 75),
    "against_cpu": Check("tests.gpu.model_checks:against_cpu", 90),
    "attention_backends": Check("tests.gpu.attention_checks:attention_backends", 75),
    "residency_torch": Check("tests.gpu.memory_checks:residency_torch", 60),
    "residency_fused": Check("tests.gpu.memory_checks:residency_fused", 60),
    "shards_between_processes": Check("tests.gpu.transfer_checks:shards_between_processes", 60),
    "logprob_memory": Check("tests.gpu.memory_checks:logprob_memory", 45),
    "train_step": Check("tests.gpu.step_checks:train_step", 180),
}


def main() -> int:
    options = parse_arguments()
    if options.dry_run:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        load_libraries()
    ends_at, failed = time.monotonic() + TOTAL_S, 0
    boxes = {name: float(seconds) for name, _, seconds in (text.partition("=") for text in options.time_box)}
    for name in options.only or CHECKS:
        limit_s = boxes.get(name, min(CHECKS[name].limit_s, ends_at - time.monotonic()))
        line = run_check(name, limit_s, is_dry=options.dry_run)
        print(json.dumps(line), flush=True)
        failed += not line["ok"]
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--time-box", nargs="+", default=[], metavar="CHECK=SECONDS", help="other limits than its own")
    options = parser.parse_args()
    for text in options.time_box:
        name, _, seconds = text.partition("=")
        if name not in CHECKS or not seconds.replace(".", "", 1).isdigit():
            parser.error(f"--time-box {text}: give CHECK=SECONDS, with one of {', '.join(CHECKS)}")
    return options


def load_libraries() -> None:
    """Once, for all checks of a dry run, which are forked. With CUDA each check is a fresh process."""
    from tests.gpu.imports import guard_imports

    guard_imports()
    import torch

    torch.set_num_threads(1)
    for check in CHECKS.values():
        importlib.import_module(check.place.partition(":")[0])

    import megatron_ext.policy  # noqa: F401


def run_check(name: str, limit_s: float, *, is_dry: bool) -> dict[str, Any]:
    """The line of a check, however it ended."""
    started = time.monotonic()
    figures: dict[str, Any] = {}
    faults: list[str] = []
    context: Any = multiprocessing.get_context("fork" if is_dry else "spawn")
    pipe, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(theirs, name, is_dry))
    if limit_s > 0:
        process.start()
        theirs.close()
        faults += _listen(pipe, started + limit_s, figures)
        _end(process)
        if process.exitcode != 0 and not faults:
            faults.append(f"the process ended with {process.exitcode}")
    else:
        faults.append(f"no time was left for it ({TOTAL_S:g} s for all)")
    line = {"check": name, "ok": not faults, "seconds": round(time.monotonic() - started, 1), **figures}
    return line | ({"faults": faults} if faults else {})


def _listen(pipe: Connection, ends_at: float, figures: dict[str, Any]) -> list[str]:
    """Takes figures in until the check has ended, or its time has; returns what is wrong."""
    faults: list[str] = []
    began = time.monotonic()
    while pipe.poll(max(0.0, ends_at - time.monotonic())):
        try:
            kind, value = pipe.recv()
        except EOFError:
            return [*faults, "the process ended before the check did"]
        if kind == "figures":
            figures |= value
        elif kind == "fault":
            faults.append(value)
        else:
            return faults
    return [*faults, f"it took more than {time.monotonic() - began:.1f} s and was ended"]


def _end(process: Any) -> None:
    """With all that it has started: it leads a process group of its own."""
    process.join(5.0)
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()


def _run(pipe: Connection, name: str, is_dry: bool) -> None:
    """In the process of a check."""
    os.setpgid(0, 0)
    from tests.gpu.imports import guard_imports

    guard = guard_imports()
    from tests.gpu.report import Report
    from tests.gpu.sizes import DRY, GPU

    report = Report(pipe.send)
    try:
        if is_dry or _sees_gpu(report):
            module, _, function = CHECKS[name].place.partition(":")
            getattr(importlib.import_module(module), function)(report, DRY if is_dry else GPU)
    except Exception as error:
        traceback.print_exc()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        report.require(False, f"{type(error).__name__}: {str(error)[:500]} ({frame.filename}:{frame.lineno})")
    strangers = guard.strangers()
    report.require(not strangers, f"imported, and not there on a bare machine: {', '.join(strangers)}")
    pipe.send(("end", None))


def _sees_gpu(report: Any) -> bool:
    import torch

    report.require(torch.cuda.is_available(), "torch sees no GPU: run it on a machine with one, or with --dry-run")
    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
