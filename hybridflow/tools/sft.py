"""`hybridflow sft`: supervised training on demonstrations, the warm-up stage of the recipe as a run of its own.

<run.directory>/<run.name>/
    resolved.json    every setting            metrics.jsonl   one line per step
    checkpoints/     step-000050/{megatron/, state.json, manifest.json}
    hf/              the trained model        summary.json    what came of it        logs/    of the workers
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridflow.batching.microbatch import plan_micro_batches
from hybridflow.config.load import dump_resolved
from hybridflow.data.demonstrations import DemonstrationSet
from hybridflow.errors import CheckpointError, ConfigError
from hybridflow.observability.display import LiveDisplay
from hybridflow.observability.trackers import JsonlTracker
from hybridflow.policy.init import write_policy
from hybridflow.tools.session import open_policy
from hybridflow.tools.sft_config import SftConfig
from hybridflow.trainer.group import PolicyGroup, PolicySettings
from hybridflow.trainer.layout import check_model_layout
from hybridflow.types import TrainBatch, TrainSequence, UpdateReport
from megatron_ext import commit
from megatron_ext.commit import BrokenCheckpointError
from megatron_ext.hf.config import read_hf_config
from megatron_ext.lr import LRSchedule, learning_rate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAY_CHANGE_ON_RESUME = ("run.directory", "train.num_steps", "train.num_epochs", "checkpoint", "train.num_threads")


@dataclass(frozen=True)
class SftRun:
    """What stays the same over the run."""

    config: SftConfig
    folder: Path
    demonstrations: DemonstrationSet
    schedule: LRSchedule
    total_steps: int


def run_sft(config: SftConfig, *, resume: bool) -> dict[str, Any]:
    """Trains, exports and returns what summary.json says. What can be known before workers start is raised then."""
    started = time.monotonic()
    folder = Path(config.run.directory) / config.run.name
    tokenizer = _check_model(config)
    demonstrations = DemonstrationSet(
        config.data.path,
        tokenizer,
        max_tokens=config.data.max_tokens,
        seed=config.run.seed,
        overlong=config.data.overlong,
    )
    total_steps = config.total_steps(len(demonstrations))
    train = config.train
    try:
        schedule = LRSchedule(
            train.learning_rate, train.lr_schedule, train.lr_warmup_steps, total_steps, train.lr_min_ratio
        )
    except ValueError as error:
        raise ConfigError(f"train.lr_schedule: {error}") from error
    checkpoint = _latest(folder) if resume else None
    _open_folder(config, folder, resume)
    run = SftRun(config, folder, demonstrations, schedule, total_steps)
    settings = PolicySettings(train, config.model.dtype, config.run.seed, train.optimizer)
    with (
        LiveDisplay(config.run.name) as display,
        open_policy(settings, _weights(config, folder), folder / "logs") as group,
    ):
        done = 0
        if checkpoint is not None:
            group.load_checkpoint(checkpoint / "megatron")
            done = json.loads((checkpoint / "state.json").read_text())["step"]
            display.note(f"resuming from {checkpoint}: {done} steps done")
        last = _train(run, group, display, done)
        group.save_hf(folder / "hf")
    summary = {
        "status": "finished",
        "num_steps": total_steps,
        "num_demonstrations": len(demonstrations),
        "num_dropped": demonstrations.num_dropped,
        "final_loss": last.loss if last else None,
        "wall_s": round(time.monotonic() - started, 1),
        "hf": str(folder / "hf"),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _train(run: SftRun, group: PolicyGroup, display: LiveDisplay, done: int) -> UpdateReport | None:
    """The steps that are left; the next batch is planned while the workers compute. Steps are numbered from 1."""
    config, report = run.config, None
    tracker = JsonlTracker(run.folder / "metrics.jsonl")
    tracker.truncate_after(done)
    display.start("SFT", run.total_steps, done)
    display.phase("TRAIN")
    saving: tuple[Path, Path] | None = None
    batch = _batch(run, done) if done < run.total_steps else None
    for step in range(done + 1, run.total_steps + 1):
        assert batch is not None
        started, rate = time.monotonic(), learning_rate(run.schedule, step)
        handle = group.start_sft_step(batch, rate, per_sequence=config.train.loss == "sequence_mean")
        num_tokens = sum(sequence.num_tokens for sequence in batch.sequences)
        batch = _batch(run, step) if step < run.total_steps else None
        report = group.finish_sft_step(handle)
        metrics = {
            "policy/loss": report.loss,
            "policy/grad_norm": report.grad_norm,
            "train/learning_rate": rate,
            "train/skipped": float(report.num_skipped),
            "train/tokens": float(num_tokens),
            "perf/tokens_per_s": num_tokens / (time.monotonic() - started),
        }
        tracker.log(step, metrics)
        display.step(step - 1, metrics)
        every = config.checkpoint.every_steps
        if step == run.total_steps or (every and step % every == 0):
            _finish_save(run, group, saving)
            saving = _start_save(run, group, step)
            if not config.checkpoint.in_background:
                saving = _finish_save(run, group, saving)
    _finish_save(run, group, saving)
    tracker.close()
    return report


def _batch(run: SftRun, step: int) -> TrainBatch:
    """The batch of step `step`, from 0."""
    train = run.config.train
    sequences: list[TrainSequence] = run.demonstrations.sequences_for_step(step, train.sequences_per_step)
    plan = plan_micro_batches(
        [sequence.num_tokens for sequence in sequences],
        num_dp_ranks=train.layout.dp,
        max_tokens_per_micro_batch=train.max_tokens_per_micro_batch,
    )
    return TrainBatch(sequences=sequences, plan=plan)


def _start_save(run: SftRun, group: PolicyGroup, step: int) -> tuple[Path, Path]:
    target = run.folder / "checkpoints" / f"step-{step:06d}"
    unfinished = commit.begin(target)
    (unfinished / "state.json").write_text(json.dumps({"step": step}) + "\n")
    group.save_checkpoint(unfinished / "megatron", background=run.config.checkpoint.in_background)
    return unfinished, target


def _finish_save(run: SftRun, group: PolicyGroup, saving: tuple[Path, Path] | None) -> None:
    """Makes the checkpoint that is being written the latest, once it is on the disk."""
    if saving is None:
        return
    if run.config.checkpoint.in_background:
        group.finish_checkpoint()
    unfinished, target = saving
    files = commit.measure_files(unfinished, commit.list_files(unfinished))
    commit.commit(unfinished, target, files=files, description={})
    commit.keep_last(sorted(commit.list_committed(target.parent)), run.config.checkpoint.keep_last)


def _check_model(config: SftConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, after the model has been found fit for layout and window. Raises ConfigError."""
    from transformers import AutoTokenizer

    path = Path(config.model.path)
    if not (path / "config.json").is_file():
        raise ConfigError(f"model.path = {config.model.path!r}: no config.json there. Name a Hugging Face directory")
    if config.model.init == "weights" and not any(path.glob("*.safetensors")):
        raise ConfigError(
            f'model.path = {config.model.path!r} has no safetensors. Download them, or model.init = "seeded"'
        )
    check_model_layout(str(path), config.train.layout)
    window = read_hf_config(path).max_position_embeddings
    if config.data.max_tokens > window:
        raise ConfigError(
            f"data.max_tokens = {config.data.max_tokens} is above the model's window of {window} tokens "
            f"(max_position_embeddings in {path / 'config.json'}): lower it"
        )
    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _weights(config: SftConfig, folder: Path) -> Path:
    """The model to start from; drawn into the run folder where the config asks for it."""
    if config.model.init == "weights":
        return Path(config.model.path)
    drawn = folder / "initial_model"
    if not (drawn / "model.safetensors").exists():
        write_policy(config.model.path, drawn, config.run.seed)
    return drawn


def _open_folder(config: SftConfig, folder: Path, resume: bool) -> None:
    """Notes the settings. Raises ConfigError for a folder in use, or for a resume that would change the numbers."""
    resolved = folder / "resolved.json"
    if not resume:
        if folder.exists():
            raise ConfigError(
                f"{folder} holds a run already. Continue it with --resume, remove it, or name another with "
                "--set run.name=..."
            )
    else:
        before, now = _leaves(json.loads(resolved.read_text())), _leaves(config.model_dump(mode="json"))
        differing = [
            f"{key}: was {before.get(key)!r}, is {now.get(key)!r}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key) and not key.startswith(MAY_CHANGE_ON_RESUME)
        ]
        if differing:
            raise ConfigError(f"--resume of {folder} with other settings:\n  " + "\n  ".join(differing))
    dump_resolved(config, resolved)


def _latest(folder: Path) -> Path:
    """The last checkpoint, checked as far as the driver can. Raises CheckpointError."""
    whole = sorted(commit.list_committed(folder / "checkpoints"))
    if not whole or not (folder / "resolved.json").is_file():
        raise CheckpointError(f"nothing to resume in {folder}: start it without --resume")
    try:
        commit.check_sizes(whole[-1])
        commit.check_contents(whole[-1])
    except BrokenCheckpointError as error:
        raise CheckpointError(str(error)) from error
    return whole[-1]


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in _leaves(inner, f"{prefix}.{key}".strip(".")).items()}
