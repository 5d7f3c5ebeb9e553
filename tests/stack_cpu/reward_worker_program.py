"""A reward worker as a program of its own: `python reward_worker_program.py ADDRESS WORKER_ID`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from hybridflow.reward_service.sandbox.process_scorer import ProcessScorer
from hybridflow.reward_service.sandbox.protocol import BUILD_RULES, Setup
from hybridflow.reward_service.worker import RewardWorkerLoop
from hybridflow.wire.endpoint import Endpoint

if __name__ == "__main__":
    address, worker_id = sys.argv[1:]
    RewardWorkerLoop(Endpoint(address), worker_id, ProcessScorer(Setup(build_verify=BUILD_RULES)), credits=8).run()
