"""Measures a step's rows for KL and AEPO, before their rewards and advantages are final: the trainer does.

KL to a reference takes a forward pass with the reference's weights (`time/reference_s`). KL in the reward and AEPO take
one of the policy itself before that (`time/measure_s`); its log-probabilities are the old ones of the update, which
then makes no pass for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from hybridflow.algorithms.aepo import EntropyControl, mean_entropy
from hybridflow.algorithms.objective import ENTROPY, OLD_LOGPROBS, REF_LOGPROBS
from hybridflow.algorithms.reference_kl import compute_kl_price
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.sections import Config
from hybridflow.errors import TrainerError
from hybridflow.loop.batch import build_measured_batch
from hybridflow.loop.reference import keep_reference
from hybridflow.protocols import ReferenceTrainer
from hybridflow.recording.recorder import Recorder
from hybridflow.recording.state import RunState
from hybridflow.types import Collected, Measured, MeasuredRow, TrainBatch


class Measuring:
    """Measures as the sections `algorithm.kl` and `algorithm.aepo` ask for it."""

    def __init__(
        self, section: AlgorithmSection, trainer: ReferenceTrainer, recorder: Recorder, state: RunState
    ) -> None:
        self._kl = section.kl
        self._control: EntropyControl | None = None
        self._of_policy: list[str] = []
        """Columns that a forward pass of the policy gives."""
        if section.kl.place == "reward" or section.aepo.is_on:
            self._of_policy.append(OLD_LOGPROBS)
        if section.aepo.high is not None and section.aepo.low is not None:
            self._control = EntropyControl(section.aepo.high, section.aepo.low)
            self._of_policy.append(ENTROPY)
        self._trainer = trainer
        self._recorder = recorder
        self._state = state

    @property
    def needs_reference(self) -> bool:
        return self._kl.is_on

    def keep_reference(self, folder: Path, *, has_begun: bool) -> None:
        """Gives the trainer its reference, see `reference.keep_reference`."""
        keep_reference(self._trainer, self._kl, folder, has_begun=has_begun)

    def measure(self, collected: Collected, config: Config, hand_to_trainer: Callable[[], None]) -> Measured | None:
        """Has the trainer measure the rows of a step; None where there is nothing to measure, as by default."""
        if not (self._of_policy or self._kl.is_on):
            return None
        batch = build_measured_batch(collected.groups, config)
        if batch is None:
            return None
        hand_to_trainer()
        measured = self._measure_rows(batch)
        self._state.is_masking_negatives = measured.leaves_out_negative
        return measured

    def _measure_rows(self, batch: TrainBatch) -> Measured:
        """Passes over the rows of `batch`, all of whose tokens count."""
        rows: list[MeasuredRow] = [{} for _ in batch.sequences]
        if self._of_policy:
            with self._recorder.phase("measure"):
                rows = self._trainer.measure(batch, self._of_policy)
        if self._kl.is_on:
            with self._recorder.phase("reference"):
                of_reference = self._trainer.measure(batch, [REF_LOGPROBS])
            self._refuse_not_finite(batch, of_reference)
            rows = [row | more for row, more in zip(rows, of_reference, strict=True)]
        metrics: dict[str, float] = {}
        prices: dict[str, float] = {}
        by_id = {sequence.sequence_id: row for sequence, row in zip(batch.sequences, rows, strict=True)}
        if self._kl.place == "reward":
            kl = self._kl
            prices = {
                number: compute_kl_price(kl.estimator, kl.coefficient, row[OLD_LOGPROBS], row[REF_LOGPROBS])
                for number, row in by_id.items()
            }
            metrics["reward/kl_mean"] = math.fsum(prices.values()) / len(prices)
        leaves_out_negative = False
        if self._control is not None:
            entropy = mean_entropy(row[ENTROPY] for row in rows)
            leaves_out_negative = self._control.next_state(self._state.is_masking_negatives, entropy)
            metrics |= {"aepo/entropy": entropy, "aepo/masking": float(leaves_out_negative)}
        return Measured(by_id, prices, leaves_out_negative=leaves_out_negative, metrics=metrics)

    def _refuse_not_finite(self, batch: TrainBatch, rows: Sequence[MeasuredRow]) -> None:
        """TrainerError for a reference of which every update would be skipped."""
        for sequence, row in zip(batch.sequences, rows, strict=True):
            if not math.isfinite(sum(row[REF_LOGPROBS])):
                raise TrainerError(
                    f"algorithm.kl.reference = {self._kl.reference!r} gives {sequence.sequence_id} a log-probability "
                    "that is not finite: its weights are not, or they overflow in model.dtype. Remedy: name another "
                    "reference, or compute in float32"
                )
