"""Metrics of routing replay."""

from __future__ import annotations

from hybridflow.types import UpdateMetric
from megatron_ext.packing.routed_experts import Disagreement


def build_routing_metrics(routing: Disagreement | None) -> dict[str, UpdateMetric]:
    """Shares of choices (tokens x layers), and of tokens, where the trainer's routers wanted another set of experts.

    Over prompts and responses, before the optimizer step; the passes replayed the engine's choice all the same. Nothing
    where nothing was replayed.
    """
    if routing is None or not routing.num_tokens:
        return {}
    return {
        "routing/choices_differing": UpdateMetric(
            value=routing.num_differing_choices / routing.num_choices, num_tokens=routing.num_choices
        ),
        "routing/tokens_differing": UpdateMetric(
            value=routing.num_differing_tokens / routing.num_tokens, num_tokens=routing.num_tokens
        ),
    }
