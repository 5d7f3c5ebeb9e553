"""All of a supervised run that can be checked and read before a worker starts. Writes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybridflow.batching.microbatch import build_units, plan_micro_batches
from hybridflow.config.reward_sections import RulesSection
from hybridflow.data.demonstrations import DemonstrationSet
from hybridflow.errors import ConfigError
from hybridflow.policy.load import load_tokenizer
from hybridflow.rewards.registry import Registry
from hybridflow.runtime.supervised import SupervisedStage
from hybridflow.tools.sft_config import SftConfig, SftTrainSection
from hybridflow.trainer.layout import check_model_layout, check_model_weights, check_vocabulary
from hybridflow.types import TrainBatch
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
    plan = plan_micro_batches(
        build_units(sequences),
        num_dp_ranks=train.layout.dp,
        max_tokens_per_micro_batch=train.max_tokens_per_micro_batch,
    )
    return TrainBatch(sequences=sequences, plan=[plan], temperature=1.0)


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
