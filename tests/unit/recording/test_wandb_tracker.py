"""W&B's own process is killed or stopped: it is started again, once said, under the same id, and no step is lost."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
import wandb

from hybridflow.recording.wandb_tracker import WandbTracker


def service() -> psutil.Process:
    (found,) = [p for p in psutil.Process().children() if "wandb-core" in " ".join(p.cmdline())]
    return found


@pytest.mark.full
def test_a_killed_service_comes_back_and_a_stopped_one_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tracker = WandbTracker(tmp_path / "run", "test", {})
    tracker.log(0, {"reward/mean": 0.125})
    killed = service()
    killed.kill()
    killed.wait()
    for step in range(1, 4):  # the first of them is taken by a socket that nobody reads
        tracker.log(step, {"reward/mean": step / 8})
    time.sleep(0.5)
    service().send_signal(signal.SIGSTOP)
    tracker.close()
    wandb.teardown()  # as at the end of the process: all is written

    told = [record.message for record in caplog.records if record.name.startswith("hybridflow")]
    assert len(told) == 2 and all("it is started again, and the run keeps its id" in line for line in told), told
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 3 and len({file.name for file in files}) == 1, "one run for W&B"
    assert b"reward/mean" in files[-1].read_bytes()
