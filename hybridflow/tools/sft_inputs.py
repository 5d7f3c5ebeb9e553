"""Inputs of a supervised run, checked and read before a worker starts; its saved state, and its summary at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from hybridflow.config.reward_sections import RulesSection
from hybridflow.data.demonstrations import DemonstrationSet
from hybridflow.errors import CheckpointError, ConfigError
from hybridflow.loop.batch import plan_batch
from hybridflow.policy.load import load_tokenizer
from hybridflow.reading import Unreadable, read_json
from hybridflow.recording.run_folder.summary_file import installed_versions
from hybridflow.rewards.registry import Registry
from hybridflow.runtime.supervised import SupervisedStage
from hybridflow.tools.sft_config import SftConfig, SftTrainSection
from hybridflow.trainer.layout import check_model_layout, check_model_weights, check_vocabulary
from hybridflow.types import TrainBatch, UpdateReport
from megatron_ext.hf.config import HFConfig
from megatron_ext.optimizer.lr import LRSchedule


@dataclass(frozen=True)
class SftInputs:
    """The inputs of a supervised run."""

    hf_config: HFConfig
    demonstrations: DemonstrationSet
    stage: SupervisedStage


def load_inputs(config: SftConfig) -> SftInputs:
    """Raises ConfigError or DataError, naming what, value, rule and remedy."""
    hf_config = _check_model(config)
    tokenizer = load_tokenizer(config.model.path)
    check_vocabulary(tokenizer, hf_config, f"model.path = {config.model.path!r}")
    if not tokenizer.chat_template:
        raise ConfigError(
            f"model.path = {config.model.path!r}: its tokenizer has no chat template. Add chat_template.jinja"
        )
    demonstrations = DemonstrationSet(
        config.data.path,
        tokenizer,
        max_tokens=config.data.max_tokens,
        seed=config.run.seed,
        overlong=config.data.overlong,
        find_gold_problem=Registry(RulesSection()).find_gold_problem,
    )
    total_steps = config.total_steps(len(demonstrations))
    train = config.train
    try:
        schedule = LRSchedule(
            train.learning_rate, train.lr_schedule, train.lr_warmup_steps, total_steps, train.lr_min_ratio
        )
    except ValueError as error:
        raise ConfigError(f"train.lr_schedule: {error}") from error
    stage = SupervisedStage(
        num_steps=total_steps,
        schedule=schedule,
        build_batch=lambda step: build_batch(step, demonstrations, train),
        per_sequence=train.loss == "sequence_mean",
    )
    return SftInputs(hf_config, demonstrations, stage)


def build_batch(step: int, demonstrations: DemonstrationSet, train: SftTrainSection) -> TrainBatch:
    """The batch of step `step`, from 1."""
    sequences = demonstrations.sequences_for_step(step - 1, train.sequences_per_step)
    return plan_batch(sequences, [len(sequences)], train, temperature=1.0)


def _check_model(config: SftConfig) -> HFConfig:
    """Check that the model is whole and fit for layout and window; returns its config."""
    path = Path(config.model.path)
    hf_config = check_model_layout(path, config.train.layout)
    if config.model.init == "weights":
        if not any(path.glob("*.safetensors")):
            raise ConfigError(
                f"model.path = {config.model.path!r} has no safetensors. Download the weights, or set "
                'model.init = "seeded" to start from drawn ones'
            )
        check_model_weights(path, hf_config)
    window = hf_config.window_tokens
    if config.data.max_tokens > window:
        raise ConfigError(
            f"data.max_tokens = {config.data.max_tokens} is above the model's window of {window} tokens "
            f"({path / 'config.json'}): lower it"
        )
    return hf_config


class SftState(msgspec.Struct, kw_only=True):
    """Progress and totals."""

    step: int = 0
    """The last one done, from 1."""
    first_loss: float | None = None
    last_loss: float | None = None
    """None where it was not finite."""
    num_skipped_updates: int = 0
    wall_s: float = 0.0
    """Seconds of the run up to here, earlier processes included."""
    peak_rss_gib: float = 0.0

    def add_step(self, report: UpdateReport) -> None:
        self.step += 1
        self.last_loss = report.loss if math.isfinite(report.loss) else None
        if self.step == 1:
            self.first_loss = self.last_loss
        self.num_skipped_updates += report.num_skipped


def write_state(state: SftState, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))


def read_state(path: Path) -> SftState:
    """Raises CheckpointError if the file is missing or not a state."""
    try:
        return msgspec.convert(read_json(path), SftState)
    except (OSError, Unreadable, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path}: not a readable run state: {error}") from error


def build_summary(state: SftState, inputs: SftInputs, *, status: str, seed: int, hf: Path) -> dict[str, Any]:
    """Everything that summary.json says. `hf` is where the trained model is; null until the run is finished."""
    return {
        "status": status,
        "seed": seed,
        "num_steps": state.step,
        "total_steps": inputs.stage.num_steps,
        "num_demonstrations": len(inputs.demonstrations),
        "num_dropped": inputs.demonstrations.num_dropped,
        "first_loss": state.first_loss,
        "final_loss": state.last_loss,
        "num_skipped_updates": state.num_skipped_updates,
        "wall_s": round(state.wall_s, 3),
        "peak_rss_gib": round(state.peak_rss_gib, 3),
        "hf": str(hf) if status == "finished" else None,
        "versions": installed_versions(),
    }


def build_table(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The rows of the end table."""
    return {
        "steps": f"{summary['num_steps']} / {summary['total_steps']}",
        "demonstrations": summary["num_demonstrations"],
        "rows left out as too long": summary["num_dropped"],
        "loss, first step": summary["first_loss"],
        "loss, last step": summary["final_loss"],
        "updates skipped": summary["num_skipped_updates"],
        "wall seconds": summary["wall_s"],
        "peak memory, GiB": summary["peak_rss_gib"],
        "model": summary["hf"],
        "run folder": str(folder),
    }
