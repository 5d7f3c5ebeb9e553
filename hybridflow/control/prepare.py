"""All that can be checked and made before an actor starts: data, tokenizer, policy, and whether they fit each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybridflow.batching.microbatch import check_budget
from hybridflow.config.sections import Config, DataSection
from hybridflow.control.run_folder import RunFolder
from hybridflow.data.dataset import PromptDataset
from hybridflow.data.rows import load_rows, write_rows
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from hybridflow.errors import ConfigError, DataError
from hybridflow.policy.init import write_policy
from hybridflow.trainer.layout import check_model_layout
from hybridflow.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """Inputs of a run."""

    hf_dir: Path
    tokenizer: PreTrainedTokenizerBase
    train: PromptDataset
    eval_prompts: list[Prompt]
    """Empty when evaluation is off."""


def check_model(config: Config) -> None:
    """Raises ConfigError unless the model directory is there, can be cut as asked, and has the window asked for."""
    from transformers import AutoConfig

    path = Path(config.model.path)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model.path = {config.model.path!r}: no config.json there. Name a Hugging Face model directory"
        )
    if config.model.init == "weights" and not any(path.glob("*.safetensors")):
        raise ConfigError(
            f'model.path = {config.model.path!r} has no safetensors. Download the weights, or set model.init = "seeded" '
            f"to start from drawn ones"
        )
    window = AutoConfig.from_pretrained(path, local_files_only=True).max_position_embeddings
    if config.rollout.context_tokens > window:
        raise ConfigError(
            f"rollout.context_tokens = {config.rollout.context_tokens} is above the model's window of {window} tokens "
            f"(max_position_embeddings in {path / 'config.json'}): lower it"
        )
    check_model_layout(str(path), config.train.layout)


def prepare(config: Config, folder: RunFolder) -> Prepared:
    """Loads or generates data, and draws the initial weights where the config asks for it.

    Raises DataError for data that is missing, malformed or too long, ConfigError for what does not fit together.
    """
    from transformers import AutoTokenizer

    check_budget(config.data.max_prompt_tokens + config.rollout.max_new_tokens, config.train.max_tokens_per_micro_batch)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path, local_files_only=True)
    train = _load_split(config, tokenizer, config.data.train_path, "train", folder)
    eval_prompts: list[Prompt] = []
    if config.eval.num_prompts:
        test = _load_split(config, tokenizer, config.data.test_path, "test", folder)
        if len(test.prompts) < config.eval.num_prompts:
            raise ConfigError(
                f"eval.num_prompts = {config.eval.num_prompts}, but the test split has {len(test.prompts)} prompts: "
                f"lower it, or give more rows (data.test_path, data.synth.num_test)"
            )
        eval_prompts = test.prompts[: config.eval.num_prompts]
    return Prepared(_make_policy(config, folder), tokenizer, train, eval_prompts)


def _load_split(
    config: Config, tokenizer: PreTrainedTokenizerBase, path: str | None, split: str, folder: RunFolder
) -> PromptDataset:
    source = Path(path) if path else _write_synthetic(config.data, split, config.run.seed, folder)
    rows = load_rows(source)
    try:
        return PromptDataset(
            split, rows, tokenizer, config.data.max_prompt_tokens, config.run.seed, overlong=config.data.overlong
        )
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _write_synthetic(data: DataSection, split: str, seed: int, folder: RunFolder) -> Path:
    """Generates a split into the run folder, the same rows as `hybridflow data synth` with these settings."""
    target = folder.data / f"{split}.parquet"
    if not target.exists():
        spec = SynthSpec(**data.synth.model_dump())
        write_rows(target, generate_rows(spec, "train" if split == "train" else "test", seed))
    return target


def _make_policy(config: Config, folder: RunFolder) -> Path:
    if config.model.init == "weights":
        return Path(config.model.path)
    if not (folder.initial_model / "model.safetensors").exists():
        write_policy(config.model.path, folder.initial_model, config.run.seed)
    return folder.initial_model
