"""The distribution that completions of a batch were drawn from: log-probabilities mean nothing without it.

Temperature and top-p decide the distribution over the tokens. They come with each completion from the engine, and the
trainer takes them from the batch, so that nothing in between can say otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hybridflow.errors import ProtocolError
from hybridflow.types import Group, TrainSequence


class Distribution(NamedTuple):
    """softmax(logits / temperature), over the likeliest tokens that together reach top_p."""

    temperature: float
    top_p: float


def shared_distribution(groups: Sequence[Group]) -> Distribution:
    """The one that all completions of the groups, at least one, were drawn from.

    Raises ProtocolError, naming completions and values: two differ, one does not say, or one is greedy.
    """
    heads = [member.head for group in groups for member in group.members]
    first = heads[0]
    for head in heads:
        if head.temperature is None or not head.temperature > 0:
            raise ProtocolError(
                f"completion {head.completion_id} was drawn at temperature {head.temperature}: the log-probabilities "
                "of its tokens cannot be computed. Remedy: train on completions sampled at a known temperature above 0"
            )
        if (head.temperature, head.top_p) != (first.temperature, first.top_p):
            raise ProtocolError(
                f"completions of one batch were drawn from different distributions: {first.completion_id} at "
                f"temperature {first.temperature:g} and top_p {first.top_p:g}, {head.completion_id} at "
                f"{head.temperature:g} and {head.top_p:g}. Remedy: discard what was begun before rollout.temperature "
                "or rollout.top_p changed"
            )
    assert first.temperature is not None
    return Distribution(first.temperature, first.top_p)


def check_sampling_masks(rows: Sequence[TrainSequence], top_p: float) -> None:
    """Raises ProtocolError where top-p left tokens out and a row does not say which."""
    silent = next((row for row in rows if len(row.response) and not len(row.response.sampling_mask)), None)
    if top_p < 1 and silent is not None:
        raise ProtocolError(
            f"completion {silent.sequence_id} was drawn with top_p = {top_p:g} and does not say which tokens were left "
            "in: its log-probabilities cannot be computed. Remedy: have engines return them, or set rollout.top_p = 1"
        )
