"""Supervised stages on generated conversations, before RL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridflow.config.sections import Config, WarmupStage
from hybridflow.data.chat_template import Message
from hybridflow.data.conversation import encode_conversation, split_conversation
from hybridflow.data.synth.conversations import generate_conversations
from hybridflow.loop.batch import plan_batch
from hybridflow.protocols import WarmupTrainer
from hybridflow.recording.display.live import LiveDisplay
from hybridflow.recording.trackers import JsonlTracker
from hybridflow.runtime.supervised import SupervisedStage, SupervisedStep, train_supervised
from hybridflow.types import TrainBatch
from megatron_ext.optimizer.lr import LRSchedule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEEDS_PER_RUN = 1000
"""Stages of one run draw from seeds that no other run seed reaches."""


def run_stage(
    index: int,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    trainer: WarmupTrainer,
    display: LiveDisplay,
    tracker: JsonlTracker,
) -> None:
    """One stage with a fresh optimizer."""
    stage = config.warmup.stages[index]
    first_step = sum(earlier.num_steps for earlier in config.warmup.stages[:index])
    display.start(stage_name(stage), stage.num_steps, 0)
    display.phase("TRAIN")
    trainer.reset_optimizer()
    _note_answers(_draw_conversations(stage, index, 0, config)[0], tokenizer, display)
    supervised = SupervisedStage(
        num_steps=stage.num_steps,
        schedule=LRSchedule(stage.learning_rate, warmup_steps=config.warmup.lr_warmup_steps),
        build_batch=lambda step: build_stage_batch(stage, index, step - 1, config, tokenizer),
    )

    def record(done: SupervisedStep) -> None:
        tracker.log(first_step + done.number - 1, done.metrics())
        display.step(done.number - 1, done.metrics())

    train_supervised(supervised, trainer, record)


def stage_name(stage: WarmupStage) -> str:
    """As the display names it."""
    return f"warm-up: {stage.name}"


def build_stage_batch(
    stage: WarmupStage, index: int, step: int, config: Config, tokenizer: PreTrainedTokenizerBase
) -> TrainBatch:
    """The conversations of one step, tokenised and placed; a pure function of its arguments."""
    sequences = [
        encode_conversation(tokenizer, messages, f"{stage.name}-{step:05d}-{row:03d}")
        for row, messages in enumerate(_draw_conversations(stage, index, step, config))
    ]
    return plan_batch(sequences, [len(sequences)], config.train, temperature=1.0)


def _draw_conversations(stage: WarmupStage, index: int, step: int, config: Config) -> list[list[Message]]:
    return generate_conversations(
        stage.conversations_per_step,
        stage.doc_tokens,
        stage.num_records,
        stage.num_questions,
        stage.abstain_fraction,
        seed=config.run.seed * SEEDS_PER_RUN + index,
        first=step * stage.conversations_per_step,
    )


def _note_answers(messages: list[Message], tokenizer: PreTrainedTokenizerBase, display: LiveDisplay) -> None:
    """Says how the answers of a conversation are learnt where the chat template leaves that open; all are alike."""
    conversation = split_conversation(tokenizer, messages)
    if conversation.num_context_answers:
        display.note(
            "warm-up: of each conversation the last answer is learnt, because the chat template writes earlier ones "
            "differently; with warmup.stages.N.num_questions = 1 none is left out"
        )
    if conversation.num_empty_thoughts:
        display.note("warm-up: the generation prompt opens the model's thinking; answers close it empty")
