"""The seams of the training loop: what it asks of the trainer, the engines and the reward stream.

`control/system.py` builds the real ones; tests of the loop put in others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from hybridflow.types import (
    GroupRequest,
    MemoryTag,
    RolloutReport,
    SamplingParams,
    ScoredCompletion,
    TrainBatch,
    UpdateReport,
    WorkerMemory,
)


class Trainer(Protocol):
    """The policy under training, on however many ranks."""

    def start_sft_step(self, batch: TrainBatch, learning_rate: float) -> Any:
        """Starts a supervised step and returns a handle for `finish_sft_step`."""
        ...

    def finish_sft_step(self, handle: Any) -> UpdateReport: ...

    def update(self, batch: TrainBatch, learning_rate: float) -> list[UpdateReport]: ...

    def logprobs(self, batch: TrainBatch) -> list[list[float]]:
        """Per row of the batch, the logprob of each counted response token."""
        ...

    def reset_optimizer(self) -> None: ...

    def save_checkpoint(self, directory: Path, background: bool = False) -> None:
        """Complete on return or, in the background, when `finish_checkpoint` returns."""
        ...

    def finish_checkpoint(self) -> None: ...

    def load_checkpoint(self, directory: Path) -> None: ...

    def save_hf(self, directory: Path) -> None: ...

    def stream_weights(self, version: int) -> Iterator[Any]:
        """Buckets of the present weights, as they are made."""
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

    def published_manifest(self) -> list[Any]:
        """What the last `stream_weights` handed out."""
        ...


class Rollout(Protocol):
    """The engines."""

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        """Starts decoding; completions arrive on the reward stream."""
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

    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        """Gives this memory of every engine back; returns the bytes, None where only the device can tell."""
        ...

    def resume(self, tags: Sequence[MemoryTag]) -> None:
        """Takes it again."""
        ...

    def load_weights(self, stream_weights: Callable[[int], Iterable[Any]], version: int) -> dict[str, list[Any]]:
        """Loads the buckets of `version` into every engine; returns what each confirmed, by engine.

        `stream_weights` is called again for an engine that is started anew before the next version.
        """
        ...


class RewardStream(Protocol):
    """Scores completions while others decode."""

    def expect(self, requests: Iterable[GroupRequest]) -> None: ...

    def withdraw(self, completion_ids: Iterable[str]) -> None:
        """These will not arrive; they may be expected again."""
        ...

    def next(self, timeout_s: float) -> ScoredCompletion | None: ...

    def outstanding(self) -> set[str]: ...

    def give_up(self, why: str) -> list[ScoredCompletion]:
        """Every completion that has arrived and has no verdict, as unknown."""
        ...

    def take_metrics(self) -> dict[str, float]:
        """Since the last call: how long engines were held back, and what went wrong and was mended."""
        ...
