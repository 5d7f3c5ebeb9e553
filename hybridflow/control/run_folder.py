"""The folder of a training run."""

from __future__ import annotations

from hybridflow.config.sections import Config
from hybridflow.run_folder import folder

# A resumed run may be longer, be checkpointed, evaluated and tracked otherwise, and wait longer; all else decides its
# numbers.
MAY_CHANGE_ON_RESUME = (
    "run.directory",
    "train.num_steps",
    "eval",
    "checkpoint",
    "tracking",
    "reward.timeout_s",
    "rollout.start_timeout_s",
    "rollout.heartbeat_s",
    "rollout.hang_timeout_s",
    "rollout.max_restarts",
)


class RunFolder(folder.RunFolder):
    """Adds what only reinforcement learning has."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, MAY_CHANGE_ON_RESUME)
        self.warmup_metrics = self.path / "warmup_metrics.jsonl"
        self.completions = self.path / "completions.jsonl"
        self.eval_completions = self.path / "eval_completions.jsonl"
        self.data = self.path / "data"
