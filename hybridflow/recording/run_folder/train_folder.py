"""The folder of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridflow.config.sections import Config
from hybridflow.recording.run_folder.folder import RunFolder

# A resumed run may be longer, be checkpointed, evaluated and tracked otherwise, and wait longer; all else decides its
# numbers.
# Of the judge, model, wording and votes decide verdicts; where it is and how it is asked do not.
_JUDGE_SERVING = (
    *("endpoints", "api_key_env", "max_concurrency", "max_requests_per_s", "late_after_s", "request_timeout_s"),
    *("deadline_s", "cache_path", "price_per_million_prompt_tokens", "price_per_million_completion_tokens"),
)
MAY_CHANGE_ON_RESUME = (
    *("run.directory", "run.mode", "cluster", "train.num_steps", "eval", "checkpoint", "tracking"),
    "algorithm.preset",  # a name: its values are compared one by one
    *("reward.timeout_s", "reward.lease_s", "reward.cpu_limit_s", "reward.item_timeout_s", "reward.memory_limit_gib"),
    *("rollout.start_timeout_s", "rollout.heartbeat_s", "rollout.hang_timeout_s", "rollout.max_restarts"),
    *("rollout.own_devices", "rollout.weight_transport", "rollout.weight_bucket_mib", "rollout.verify_weights"),
    *("rollout.release_memory", "train.offload_while_decoding"),
    *("train.max_gate_gap", "train.max_logprob_gap", "train.export_dtype"),
    *(
        "reward.unknown_retries",
        "reward.max_unknown_fraction",
        "reward.max_pending_mib",
        "reward.module_folders",
        "reward.environment",
        "algorithm.module_folders",
        "curriculum.module_folders",
    ),
)
MAY_CHANGE_ON_RESUME += tuple(f"reward.judge.{key}" for key in _JUDGE_SERVING)


class TrainFolder(RunFolder):
    """Folder of a training run: adds what only reinforcement learning has."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, MAY_CHANGE_ON_RESUME)

    @property
    def warmup_metrics(self) -> Path:
        return self.path / "warmup_metrics.jsonl"

    @property
    def updates(self) -> Path:
        return self.path / "updates.jsonl"

    @property
    def timeline(self) -> Path:
        return self.path / "timeline.jsonl"

    @property
    def completions(self) -> Path:
        return self.path / "completions.jsonl"

    @property
    def eval_completions(self) -> Path:
        return self.path / "eval_completions.jsonl"

    @property
    def reference(self) -> Path:
        """Weights that KL is measured from; there where `algorithm.kl` asks for it."""
        return self.path / "reference"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def difficulty(self) -> Path:
        return self.path / "difficulty.csv"

    def stretched_model(self, factor: float) -> Path:
        """The model with YaRN of this factor, where a phase asks for it."""
        return self.path / f"model_yarn_{factor:g}"

    def comparable(self, settings: dict[str, Any]) -> dict[str, Any]:
        """A decay that ends with the run changes with its length: the rate of a longer run would jump on resume.

        Each key of a phase counts alone, and with a promotion by plateau what is evaluated decides the run.
        """
        settings = _phases_by_key(settings)
        if settings.get("train.lr_schedule") == "constant":
            return settings | {"train.lr_decay_steps": None}
        steps = settings.get("train.lr_decay_steps") or settings.get("train.num_steps")
        return settings | {"train.lr_decay_steps": steps}


def _phases_by_key(settings: dict[str, Any]) -> dict[str, Any]:
    phases = settings.get("curriculum.phases") or []
    rest = {key: value for key, value in settings.items() if key != "curriculum.phases"}
    for number, phase in enumerate(phases):
        rest |= {f"curriculum.phases.{number}.{key}": value for key, value in phase.items()}
        if phase.get("promotion") == "plateau":
            read = {key: settings.get(key) for key in ("eval.every_steps", "eval.num_prompts")}
            rest |= {f"curriculum.phases.{number} reads {key}": value for key, value in read.items()}
    return rest
