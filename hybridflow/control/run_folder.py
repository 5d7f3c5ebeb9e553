"""The folder of a training run."""

from __future__ import annotations

from hybridflow.config.sections import Config
from hybridflow.run_folder import folder

# A resumed run may be longer, and be checkpointed, evaluated and tracked otherwise; all else decides its numbers.
MAY_CHANGE_ON_RESUME = ("run.directory", "train.num_steps", "eval", "checkpoint", "tracking", "reward.timeout_s")


class RunFolder(folder.RunFolder):
    """Adds what only reinforcement learning has."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, MAY_CHANGE_ON_RESUME)
        self.warmup_metrics = self.path / "warmup_metrics.jsonl"
        self.completions = self.path / "completions.jsonl"
        self.eval_completions = self.path / "eval_completions.jsonl"
        self.data = self.path / "data"
