"""The penalty for completions that come near the length limit (soft overlong punishment).

Source: DAPO, arXiv 2503.14476, eq. 13; same in QwenLong-L1 (recipe section 5). It is a term of its own: filters and
accuracy see the reward without it.
"""

from __future__ import annotations


def compute_overlong_penalty(num_tokens: int, max_tokens: int, buffer_tokens: int, factor: float = 1.0) -> float:
    """The penalty added to the reward of a completion of `num_tokens` tokens: 0 down to -factor.

        0                                                       num_tokens <= max_tokens - buffer_tokens
        factor * (max_tokens - buffer_tokens - num_tokens) / buffer_tokens     up to max_tokens
        -factor                                                 above

    QwenLong-L1: max_tokens 10000, buffer_tokens 1000, factor 1. A buffer of 0 tokens switches it off. Raises ValueError
    where the buffer is negative or longer than the limit.
    """
    if not 0 <= buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens is {buffer_tokens}, must be 0 to max_tokens ({max_tokens})")
    excess = num_tokens - (max_tokens - buffer_tokens)
    if buffer_tokens == 0 or excess <= 0:
        return 0.0
    return -factor * min(excess / buffer_tokens, 1.0)
