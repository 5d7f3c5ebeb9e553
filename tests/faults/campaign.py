"""Random faults in short runs and their resumes, through the command line alone; prints one JSON line.

    make faults ARGS="--campaign kills --count 30"
    python tests/faults/campaign.py --campaign disks --count 3 --seed 7
    python tests/faults/campaign.py --count 12 --skip 6 --undisturbed /tmp/right    the second six of twelve

    kills   SIGKILL of a random process of each kind: those above the driver, the driver, train workers, engines and
            SGLang's processes, reward workers and what scores in them, Ray's, Weights & Biases'
    stops   SIGSTOP of the same where the run must notice itself
    disks   the disk of the run folder is full: a tmpfs of root; else a limit on the size of files, and that is said
    all     everything
    ci      one each of five kinds

A run that ended is resumed, or begun again where it had no checkpoint, and struck again, until it finishes; its
records and exported weights must be those of an undisturbed run, to the bit. {"faults": done, "kinds": of each,
"ended_in_time", "named": of how many, "leftovers": what was left, "equal": runs that were compared and agreed}. Exit
code 1 where anything is not as it should be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hybridflow.config.cluster_section import StallSection
from tests.faults.attempt import Attempt
from tests.faults.records import compare_runs
from tests.faults.strikes import SLOW, STALL_S, Outcome, Strike, plan, strike

CONFIG = """
[run]
name = "faults"
[data.synth]
doc_tokens = 64
num_train = 64
num_test = 8
[warmup]
stages = []
[train]
num_steps = {steps}
prompts_per_step = 4
layout = {{ tp = 1 }}
[algorithm]
num_completions = 4
[rollout]
num_threads = 1
max_new_tokens = 16
hang_timeout_s = {hang_s}
kv_cache_tokens = 16384
[reward]
num_workers = 1
functions = [{{ call = "tests.faults.reward:even" }}]
[eval]
num_prompts = 0
[checkpoint]
every_steps = 1
[cluster.stall]
{limits}
"""
DISK_BYTES = 400 * 2**20
FINISH_S = 240.0 * SLOW


class Campaign:
    """The faults of one command line. `work` is its folder, `disk` the one that runs are written to."""

    def __init__(self, work: Path, disk: Path, temporary: Path, *, steps: int, is_mounted: bool) -> None:
        self._disk = disk
        self._temporary = temporary
        self._is_mounted = is_mounted
        self._config = work / "faults.toml"
        limits = "\n".join(f"{phase}_s = {STALL_S:g}" for phase in StallSection().limits())
        self._config.write_text(CONFIG.format(steps=steps, limits=limits, hang_s=10 * SLOW))
        self.outcomes: list[Outcome] = []
        self.leftovers: list[str] = []
        self.differences: list[str] = []
        self.num_equal = 0

    def undisturbed(self, kept: Path | None) -> Path:
        """Folder of a run that nothing happened to: `kept` where it is there already, else copied to it."""
        if kept and kept.exists():
            return kept
        with self._attempt("undisturbed", resume=False) as attempt:
            if attempt.wait(FINISH_S) != 0:
                raise SystemExit(f"the undisturbed run failed:\n{attempt.said()}")
            self._look_behind(attempt)
        folder = self._disk / "undisturbed/runs/faults"
        return shutil.copytree(folder, kept) if kept else folder

    def run(self, faults: list[Strike], right: Path) -> None:
        """All faults, in as many runs as they need; each run is finished and compared."""
        left = list(faults)
        for number in itertools.count():
            name, goes_on = f"run{number}", True
            while goes_on:
                goes_on = self._start_once(name, left, right)
            if not left:
                return

    def _start_once(self, name: str, left: list[Strike], right: Path) -> bool:
        """One start or resume, struck by the next of the faults until it ends; whether it has to be resumed."""
        with self._attempt(name, resume=self._can_resume(name)) as attempt:
            is_struck = False
            while left and attempt.process.poll() is None:
                outcome = strike(left[0], attempt, self._disk, self._is_mounted)
                if not outcome.struck:
                    if not outcome.ended:
                        self._tell_different(f"{name}: no process for {left.pop(0)}")
                    break
                is_struck = True
                left.pop(0)
                self._count(outcome)
                if outcome.ended or not outcome.in_time:
                    break
            code = attempt.wait(FINISH_S if not left else 1.0)
            self._look_behind(attempt)
            if code == 0:
                self._compare(name, right)
                return False
            if not is_struck:
                self._tell_different(f"{name} failed by itself (exit code {code}):\n{attempt.said()[-3000:]}")
            return is_struck

    def _attempt(self, name: str, *, resume: bool) -> Attempt:
        log = self._config.with_name(f"{name}.txt")
        return Attempt(self._config, self._disk / name, log, self._temporary, resume=resume)

    def _can_resume(self, name: str) -> bool:
        return bool(list((self._disk / name / "runs/faults/checkpoints").glob("rl-*/manifest.json")))

    def _count(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        what = outcome.strike
        print(
            f"{len(self.outcomes)}: {what.campaign} {what.kind}{' in the start' if what.in_start else ''}: "
            f"{'ended' if outcome.ended else 'goes on'} after {outcome.seconds:.1f} s"
            f"{'' if outcome.in_time else ', TOO LATE'}{'' if outcome.named else ', NOT NAMED'}",
            file=sys.stderr,
        )
        if not (outcome.in_time and outcome.named):
            print(outcome.said[-4000:], file=sys.stderr)

    def _look_behind(self, attempt: Attempt) -> None:
        if attempt.process.poll() is None:
            attempt.__exit__()
        left = attempt.remove_leftovers()
        for what in left:
            print(f"left behind: {what}", file=sys.stderr)
        self.leftovers += left

    def _compare(self, name: str, right: Path) -> None:
        found = compare_runs(self._disk / name / "runs/faults", right)
        for difference in found:
            self._tell_different(f"{name}: {difference}")
        self.num_equal += not found
        shutil.rmtree(self._disk / name)

    def _tell_different(self, what: str) -> None:
        self.differences.append(what)
        print(what, file=sys.stderr)


@contextmanager
def _disk_of(work: Path) -> Iterator[tuple[Path, bool]]:
    """A folder on a small disk of its own, and whether it is one: only root may make it."""
    disk = work / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)]
    is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not is_mounted:
        print("no disk can be mounted here: a limit on the size of files stands for a full one", file=sys.stderr)
    try:
        yield disk, is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", choices=["kills", "stops", "disks", "all", "ci"], default="all")
    parser.add_argument("--count", type=int, default=10, help="faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="of them, those that an earlier command has done")
    parser.add_argument("--undisturbed", type=Path, help="folder that keeps the undisturbed run for the next command")
    parser.add_argument("--steps", type=int, default=10, help="RL steps of a run")
    options = parser.parse_args()
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    temporary = Path(tempfile.mkdtemp(prefix="f"))  # of few letters, as sockets are in it
    try:
        with _disk_of(work) as (disk, is_mounted):
            campaign = Campaign(work, disk, temporary, steps=options.steps, is_mounted=is_mounted)
            right = campaign.undisturbed(options.undisturbed)
            campaign.run(plan(options.campaign, options.count, options.seed)[options.skip :], right)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)
    outcomes = campaign.outcomes
    result = {
        "faults": len(outcomes),
        "kinds": dict(sorted(Counter(f"{o.strike.campaign}/{o.strike.kind}" for o in outcomes).items())),
        "ended_in_time": sum(outcome.in_time for outcome in outcomes),
        "named": sum(outcome.named for outcome in outcomes),
        "leftovers": campaign.leftovers,
        "equal": campaign.num_equal,
        "differences": campaign.differences,
        "disk": "tmpfs" if is_mounted else "limit on the size of files",
        "campaign": options.campaign,
        "seed": options.seed,
        "seconds": round(time.monotonic() - started),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))
    is_good = all(outcome.in_time and outcome.named for outcome in outcomes)
    sys.exit(0 if is_good and not campaign.leftovers and not campaign.differences and campaign.num_equal else 1)


if __name__ == "__main__":
    main()
