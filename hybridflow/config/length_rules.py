"""Lengths that do not fit together: prompt and completion against window, pool and micro-batch; the buffer too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybridflow.config.sections import Config


def find_length_conflicts(config: Config) -> Iterator[str]:
    """Gives "<what is wrong, with the values>. Remedy: <what to do>" of each rule on lengths that `config` breaks."""
    buffer, limit = config.reward.overlong.buffer_tokens, config.rollout.max_new_tokens
    if buffer > limit:
        yield (
            f"reward.overlong.buffer_tokens ({buffer}) is above rollout.max_new_tokens ({limit}): a completion of "
            f"no token at all would be penalised. Remedy: lower the first, or raise the second"
        )
    window = config.rollout.context_tokens
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    if longest > window:
        yield (
            f"data.max_prompt_tokens ({config.data.max_prompt_tokens}) + rollout.max_new_tokens "
            f"({config.rollout.max_new_tokens}) = {longest} is above rollout.context_tokens ({window}). "
            f"Remedy: lower one of the first two, or raise the window if the model allows it"
        )
    pool = config.rollout.kv_cache_tokens
    if pool is not None and longest > pool:
        yield (
            f"data.max_prompt_tokens ({config.data.max_prompt_tokens}) + rollout.max_new_tokens "
            f"({config.rollout.max_new_tokens}) = {longest} is above rollout.kv_cache_tokens ({pool}): completions "
            "would be cut short. Remedy: raise the pool, or lower one of the first two"
        )
    budget = config.train.max_tokens_per_micro_batch
    if longest > budget:
        yield (
            f"data.max_prompt_tokens ({config.data.max_prompt_tokens}) + rollout.max_new_tokens "
            f"({config.rollout.max_new_tokens}) = {longest} is above train.max_tokens_per_micro_batch ({budget}). "
            f"Remedy: raise the budget, or lower one of the first two"
        )
