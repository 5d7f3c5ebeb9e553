"""The seams of the training loop: what it asks of the trainer, the engines and the reward stream.

Each protocol is one role, and who needs that role alone asks for it alone. `Trainer`, `Rollout` and `RewardStream` are
the sums: `runtime/system.py` builds the real ones; a test puts in what its roles need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hybridflow.types import (
    GroupRequest,
    MeasuredRow,
    MemoryTag,
    RolloutReport,
    SamplingParams,
    ScoredCompletion,
    TrainBatch,
    UpdateReport,
    WorkerMemory,
)


class SupervisedTrainer(Protocol):
    """Trains on conversations."""

    def start_sft_step(self, batch: TrainBatch, learning_rate: float, per_sequence: bool = False) -> Any:
        """Starts a supervised step, in which each token or each sequence counts alike; see `finish_sft_step`."""
        ...

    def finish_sft_step(self, handle: Any) -> UpdateReport: ...


class WarmupTrainer(SupervisedTrainer, Protocol):
    """Trains on conversations in stages, each with a fresh optimizer."""

    def reset_optimizer(self) -> None: ...


class LogprobTrainer(Protocol):
    """Computes the logprobs of tokens that are given."""

    def logprobs(self, batch: TrainBatch) -> list[list[float]]:
        """Per row of the batch, the logprob of each counted response token."""
        ...


class CheckpointWriter(Protocol):
    """Writes weights and optimizer into a checkpoint."""

    def save_checkpoint(self, directory: Path, background: bool = False) -> None:
        """Complete on return or, in the background, when `finish_checkpoint` returns."""
        ...

    def finish_checkpoint(self) -> None: ...


class CheckpointReader(Protocol):
    """Reads weights and optimizer from a checkpoint."""

    def load_checkpoint(self, directory: Path) -> None: ...


class ReferenceTrainer(Protocol):
    """Keeps a second policy, which is not trained, and measures rows by both before an update."""

    def keep_reference(self, directory: Path | None, verified: bool = False) -> None:
        """The weights in a Hugging Face folder, or else the present ones, are the reference from now on.

        `verified`: the folder has a manifest by which it is checked.
        """
        ...

    def save_reference(self, directory: Path) -> None:
        """Writes it as a Hugging Face folder, from which it comes back bit for bit."""
        ...

    def measure(self, batch: TrainBatch, columns: Sequence[str]) -> list[MeasuredRow]:
        """Per row, a value for each counted token: `old_logprobs`, `entropy` of the policy, `ref_logprobs`."""
        ...


class PolicyTrainer(CheckpointWriter, ReferenceTrainer, Protocol):
    """Trains the policy by RL, and keeps what came of it."""

    def reset_optimizer(self) -> None: ...

    def update(self, batch: TrainBatch, learning_rate: float) -> list[UpdateReport]: ...

    def save_hf(self, directory: Path) -> None: ...


class ColocatedTrainer(Protocol):
    """Hands weights to engines, and shares devices with them."""

    def begin_weights(self, version: int) -> None:
        """The present weights are about to be handed out, as this version."""
        ...

    def next_weights(self) -> Any | None:
        """The next round of them; None after the last. Its reader has loaded the last but one."""
        ...

    def end_weights(self) -> list[Any]:
        """Its reader has loaded all rounds: what they were, tensor by tensor."""
        ...

    def to_host(self, *parts: str) -> int:
        """Frees the device memory of these parts; returns the bytes."""
        ...

    def to_device(self, *parts: str) -> int:
        """Brings them back; returns the bytes taken."""
        ...

    def memory(self) -> list[WorkerMemory]:
        """Each worker's device, and what it holds there."""
        ...


class Trainer(WarmupTrainer, LogprobTrainer, CheckpointReader, PolicyTrainer, ColocatedTrainer, Protocol):
    """The policy under training, on however many ranks, in all of its roles."""


class WeightSource(Protocol):
    """The trainer's end of a weight sync. The engines that it is for are open when it begins."""

    def begin_sync(self, version: int) -> None: ...

    def next_round(self) -> Any | None:
        """The round that engines load next; None after the last. The last round but one has been loaded by all."""
        ...

    def end_sync(self, confirmed: Mapping[str, list[Any]]) -> None:
        """Holds what each engine says it loaded, by its name, against what was handed out; WeightSyncError."""
        ...


class Decoder(Protocol):
    """Decodes the completions of a step."""

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        """Starts decoding; completions arrive on the reward stream."""
        ...

    def extend(self, requests: list[GroupRequest]) -> None:
        """Further groups of what is being decoded, before `poll` has given the report."""
        ...

    def poll(self) -> RolloutReport | None:
        """Keeps the engines at work; the report once decoding has ended, None before. Raises what an engine raised."""
        ...

    def stop(self) -> None:
        """Ends what is under way: it arrives with what it has, finish_reason "abort"."""
        ...

    def take_dropped(self) -> list[str]:
        """Since the last call: ids of completions that will not arrive, as no engine had begun them."""
        ...


class ColocatedEngines(Protocol):
    """Engines that load weights, and share devices with the trainer."""

    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        """Gives this memory of every engine back; returns the bytes, None where only the device can tell."""
        ...

    def resume(self, tags: Sequence[MemoryTag]) -> None:
        """Takes it again."""
        ...

    def load_weights(self, source: WeightSource, version: int) -> None:
        """A weight sync of every engine: begin, each round, end.

        There is another one for an engine that is started again before the next version.
        """
        ...


class Rollout(Decoder, ColocatedEngines, Protocol):
    """The engines, in all of their roles."""


class VerdictStream(Protocol):
    """Scores completions while others decode."""

    def expect(self, requests: Iterable[GroupRequest]) -> None: ...

    def withdraw(self, completion_ids: Iterable[str]) -> None:
        """Withdraw completions that will not arrive; they may be expected again."""
        ...

    def next(self, timeout_s: float) -> ScoredCompletion | None: ...

    def outstanding(self) -> set[str]: ...

    def give_up(self, why: str) -> list[ScoredCompletion]:
        """Every completion that has arrived and has no verdict, as unknown."""
        ...


class RewardStream(VerdictStream, Protocol):
    """Scores completions, and says what that cost."""

    def take_metrics(self) -> dict[str, float]:
        """Since the last call: how long engines were held back, and what went wrong and was mended."""
        ...
