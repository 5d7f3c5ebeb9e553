"""Numbers of a batch's tokens before the update, by this rank: the policy's, or those of its reference.

They are the columns that a loss or the driver asks for and that no engine can give. Each distinct policy is one forward
pass over the rows of this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from hybridflow.algorithms.objective import ENTROPY, OLD_LOGPROBS, REF_LOGPROBS
from hybridflow.observability.span import enter
from hybridflow.trainer.batch import pack_rank
from hybridflow.types import MeasuredRow, TrainBatch
from megatron_ext.policy import MegatronPolicy

OF_POLICY = (OLD_LOGPROBS, ENTROPY)


def measure_rows(policy: MegatronPolicy, batch: TrainBatch, columns: Sequence[str]) -> dict[int, MeasuredRow]:
    """Row number -> `columns`, a value for each counted token, for this rank's rows. Collective.

    Empty but on one rank of the last stage of each data parallel rank. RuntimeError for REF_LOGPROBS without a
    reference.
    """
    found: dict[int, MeasuredRow] = {}
    for wanted, is_reference in (
        ([name for name in columns if name in OF_POLICY], False),
        ([name for name in columns if name == REF_LOGPROBS], True),
    ):
        if wanted:
            for row, values in _forward(policy, batch, wanted, is_reference=is_reference).items():
                found.setdefault(row, {}).update(values)
    return found


def _forward(
    policy: MegatronPolicy, batch: TrainBatch, wanted: Sequence[str], *, is_reference: bool
) -> dict[int, MeasuredRow]:
    topology = policy.topology
    (mini_batch,) = batch.plan
    enter("log-probabilities of the reference" if is_reference else "log-probabilities before the update")
    with policy.as_reference() if is_reference else nullcontext():
        outputs = policy.logprobs(
            pack_rank(batch, topology.dp_rank), temperature=batch.temperature, with_entropy=ENTROPY in wanted
        )
    rows: dict[int, MeasuredRow] = {}
    if outputs is None or topology.tp_rank or topology.cp_rank:
        return rows
    for numbers, output in zip(mini_batch[topology.dp_rank], outputs, strict=False):  # a rank without rows has a fill
        counts = [sum(batch.sequences[number].loss_mask) for number in numbers]
        for name in wanted:
            values_N = output.entropy_N if name == ENTROPY else output.logprobs_N
            assert values_N is not None
            for number, piece in zip(numbers, values_N.split(counts) if counts else (), strict=True):
                rows.setdefault(number, {})[name] = piece.tolist()
    return rows
