"""Preparation before any actor starts: data, tokenizer, policy, and whether they fit each other.

`check_model` and `load_inputs` only read, so that a mistake is found before the folder of an earlier run is moved;
`write_inputs` then puts what was generated into the new folder.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hybridflow.batching.microbatch import check_budget
from hybridflow.config.phases import train_configs
from hybridflow.config.sections import Config
from hybridflow.curriculum.windows import count_outside
from hybridflow.data.dataset import EvalSet, PromptDataset
from hybridflow.data.records import refuse_problems
from hybridflow.data.row_reference import RowReference
from hybridflow.data.rows import write_rows
from hybridflow.data.schema import BadRow, Row
from hybridflow.data.synth.spec import Split
from hybridflow.errors import ConfigError, DataError
from hybridflow.policy.load import load_tokenizer
from hybridflow.preflight.routing import refuse_routing
from hybridflow.preflight.row_source import RowSource, data_file, find_questions
from hybridflow.recording.accuracy import TEST
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.rewards.registry import Registry, build_registry
from hybridflow.rollout.engine.arguments import check_engine_layout
from hybridflow.rollout.engine.model_folder import check_engine_model
from hybridflow.runtime.transport import choose_transport
from hybridflow.trainer.layout import check_model_layout, check_model_weights, check_vocabulary, read_model
from hybridflow.types import Prompt
from megatron_ext.hf.config import read_json_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def find_problems(rows: Sequence[Row | BadRow], registry: Registry, source: str) -> list[str]:
    """Names the fault of each row that cannot be used, in order."""
    problems: list[str] = []
    for number, row in enumerate(rows):
        if isinstance(row, BadRow):
            problems.append(row.why)
        elif why := registry.find_gold_problem(row.data_source, row.ability, row.reward_model.golds):
            problems.append(f"{source}, row {number}: {why}")
    return problems


@dataclass(frozen=True)
class Inputs:
    """Prompts of a run, tokenised."""

    tokenizer: PreTrainedTokenizerBase
    trains: dict[str | None, PromptDataset]
    """By path, None for generated rows: what training takes its prompts from; one of them where no phase names more."""
    eval_sets: list[EvalSet]
    """Empty when evaluation is off."""
    generated: dict[str, list[Row]] = field(default_factory=dict)
    """Rows by split, where no file gave them: what the run folder is to keep."""
    counts: dict[str, int] = field(default_factory=dict)
    """Rows read and left out, and test rows that are training rows too, by name: for the summary."""
    documents: dict[str, RowReference] = field(default_factory=dict)
    """Where each prompt comes from, by its id: for the records."""

    @property
    def train(self) -> PromptDataset:
        """The first of `trains`."""
        return next(iter(self.trains.values()))

    @property
    def prompts(self) -> list[Prompt]:
        """All prompts of the run, of training and evaluation."""
        return [prompt for one in (*self.trains.values(), *self.eval_sets) for prompt in one.prompts]

    @property
    def notes(self) -> list[str]:
        """Notes on the data that a reader of the run's accuracy must know."""
        counts = self.counts
        notes = [
            f"{counts[f'{split}_rows_dropped']} of {counts[f'{split}_rows']} {split} rows are left out: their prompts "
            f"are longer than data.max_prompt_tokens"
            for split in ("train", "test")
            if counts.get(f"{split}_rows_dropped")
        ]
        notes += [
            f"{counts[f'{split}_rows_truncated']} of {counts[f'{split}_rows']} {split} rows lose the middle of their "
            f"documents: their prompts are longer than data.max_prompt_tokens"
            for split in ("train", "test")
            if counts.get(f"{split}_rows_truncated")
        ]
        if outside := counts.get("train_rows_in_no_window"):
            notes.append(
                f"{outside} of {counts['train_rows']} train rows are in the window of no phase of the curriculum, "
                f"counted with the model's chat template"
            )
        if unusable := [why for one in self.eval_sets for why in one.unusable.values()]:
            notes.append(f"{len(unusable)} test rows cannot be used and count as unknown; the first: {unusable[0]}")
        num_prompts = sum(len(one.prompts) for one in self.eval_sets)
        if shared := counts.get("eval_prompts_in_train"):
            notes.append(
                f"{shared} of {num_prompts} evaluation prompts are training prompts too: the accuracy on "
                f"them is not that of unseen documents"
            )
        return notes


def check_model(config: Config) -> None:
    """Raises ConfigError unless the model is there, whole, can be cut as asked, and has the window asked for."""
    path = Path(config.model.path)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model.path = {config.model.path!r}: no config.json there. Name a Hugging Face model directory"
        )
    if config.model.init == "weights" and not any(path.glob("*.safetensors")):
        raise ConfigError(
            f"model.path = {config.model.path!r} has no safetensors. Download the weights, or set "
            f'model.init = "seeded" to start from drawn ones'
        )
    hf_config = check_model_layout(path, config.train.layout)
    check_engine_model(hf_config, read_json_config(path), f"model.path = {config.model.path!r}")
    check_engine_layout(hf_config.num_heads, config.rollout.tp_size, f"rollout.tp_size = {config.rollout.tp_size}")
    refuse_routing(config, hf_config.model_type, hf_config.moe, hf_config.num_layers)
    choose_transport(config, path, has_cuda=None)
    if config.model.init == "weights":
        check_model_weights(path, hf_config)
    if not config.curriculum.phases:
        check_window(config, hf_config.window_tokens, f"max_position_embeddings and rope scaling in {path}/config.json")


def check_window(config: Config, window: int, source: str, key: str = "rollout.context_tokens") -> None:
    """Raises ConfigError where engines are asked for more than the model's window of so many tokens."""
    if config.rollout.context_tokens > window:
        raise ConfigError(
            f"{key} = {config.rollout.context_tokens} is above the model's window of {window} tokens ({source}): "
            "lower it"
        )


def load_inputs(config: Config, saved: Path | None) -> Inputs:
    """Reads or generates the prompts; writes nothing.

    Generated rows that an earlier process of this run has put into `saved` are read from there.
    Raises DataError for data that is missing, malformed or too long, ConfigError for what does not fit together.
    """
    check_budget(config.data.max_prompt_tokens + config.rollout.max_new_tokens, config.train.max_tokens_per_micro_batch)
    tokenizer = load_tokenizer(config.model.path)
    check_vocabulary(tokenizer, read_model(config.model.path), f"model.path = {config.model.path!r}")
    generated: dict[str, list[Row]] = {}
    trains = {
        path: _load_split(at, tokenizer, "train", saved, generated, name="train" if number == 1 else f"train{number}")
        for number, (path, at) in enumerate(train_configs(config).items(), start=1)
    }
    eval_sets: list[EvalSet] = []
    documents = {prompt_id: row for one in trains.values() for prompt_id, row in one.documents.items()}
    counts = _count_rows("train", list(trains.values()))
    if config.eval.num_prompts:
        test = _load_split(config, tokenizer, "test", saved, generated)
        num_prompts = len(test.prompts) + len(test.unusable)
        if num_prompts < config.eval.num_prompts:
            raise ConfigError(
                f"eval.num_prompts = {config.eval.num_prompts}, but the test split has {num_prompts} prompts: "
                f"lower it, or give more rows (data.test_path, data.synth.num_test)"
            )
        chosen = set(sorted([*(p.prompt_id for p in test.prompts), *test.unusable])[: config.eval.num_prompts])
        eval_prompts = [prompt for prompt in test.prompts if prompt.prompt_id in chosen]
        unusable = {prompt_id: why for prompt_id, why in test.unusable.items() if prompt_id in chosen}
        eval_sets.append(EvalSet(TEST, eval_prompts, unusable))
        documents |= test.documents
        seen = {_digest(prompt) for one in trains.values() for prompt in one.prompts}
        counts |= _count_rows("test", [test])
        counts |= {"test_rows_unusable": len(unusable)} if unusable else {}
        counts["eval_prompts_in_train"] = sum(_digest(prompt) in seen for prompt in eval_prompts)
    if config.curriculum.phases:
        counts["train_rows_in_no_window"] = count_outside(config, {path: one.prompts for path, one in trains.items()})
    return Inputs(tokenizer, trains, eval_sets, generated, counts, documents)


def _count_rows(split: Split, parts: Sequence[PromptDataset]) -> dict[str, int]:
    """Rows read, left out, and cut where any were."""
    truncated = sum(one.num_truncated for one in parts)
    return {
        f"{split}_rows": sum(one.num_rows for one in parts),
        f"{split}_rows_dropped": sum(one.num_dropped for one in parts),
    } | ({f"{split}_rows_truncated": truncated} if truncated else {})


def write_inputs(inputs: Inputs, folder: TrainFolder) -> None:
    """Keeps generated rows in the run folder."""
    for split, rows in inputs.generated.items():
        write_rows(data_file(folder.data, split), rows)


def _load_split(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    split: Split,
    saved: Path | None,
    generated: dict[str, list[Row]],
    name: str = "",
) -> PromptDataset:
    """`name`: the beginning of prompt ids; empty: that of the split."""
    source = RowSource.of(config, split, saved)
    rows = source.load_all(config)
    if source.path is None:
        generated[split] = [row for row in rows if isinstance(row, Row)]
    registry = build_registry(config.reward)
    if split == "train":
        refuse_problems(source.name, find_problems(rows, registry, source.name), len(rows))
    questions = find_questions(config, registry, rows, source.name)
    try:
        return PromptDataset(
            name or split,
            rows,
            tokenizer,
            config.data.max_prompt_tokens,
            overlong=config.data.overlong,
            questions=questions,
            row_arguments=registry.row_arguments,
            source=source.given or str(data_file(Path("data"), split)),  # in the run folder, also where it is resumed
        )
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error


def _digest(prompt: Prompt) -> bytes:
    """Equal for prompts of the same tokens; a set of long prompts would take gigabytes."""
    return hashlib.blake2b(array("q", prompt.token_ids).tobytes(), digest_size=16).digest()
