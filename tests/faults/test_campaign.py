"""Five faults, one of each kind that matters most: all end in time, named, with nothing left; the runs are equal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.kinds import KINDS
from tests.faults.strikes import plan

FIVE = {"disks/disk", "kills/driver", "kills/scheduler", "kills/train_worker", "stops/train_worker"}


def test_a_campaign_is_the_same_for_the_same_seed_and_strikes_each_kind_alike() -> None:
    assert plan("all", 30, seed=3) == plan("all", 30, seed=3) != plan("all", 30, seed=4)
    assert {strike.kind for strike in plan("kills", len(KINDS), seed=0)} == KINDS.keys()
    assert {f"{strike.campaign}/{strike.kind}" for strike in plan("ci", 5, seed=0)} == FIVE


@pytest.mark.stack_cpu
@pytest.mark.faults
@pytest.mark.full
@pytest.mark.timeout(2400)
def test_five_faults_leave_nothing_behind() -> None:
    program = Path(__file__).with_name("campaign.py")
    command = [sys.executable, str(program), "--campaign", "ci", "--count", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result["kinds"]) == FIVE
    assert result["faults"] == result["ended_in_time"] == result["named"] == 5
    assert result["leftovers"] == result["differences"] == [] and result["equal"] >= 1
