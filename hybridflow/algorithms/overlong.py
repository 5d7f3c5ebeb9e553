"""Soft punishment of completions that come near the length limit.

Source: soft overlong punishment of DAPO (arXiv 2503.14476, Eq. 13) as in QwenLong-L1 (recipe section 5). It is a term
of its own, added to the reward after the filters have seen the reward without it: a group in which all are right stays
a group without signal, whatever the lengths.
"""

from __future__ import annotations


def compute_overlong_penalty(num_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """What a completion of `num_tokens` loses: a number in [-1, 0] to be added to its reward.

    0 up to max_tokens - buffer_tokens, falling linearly to -1 at max_tokens, -1 beyond.

    Args:
        max_tokens: Limit of a completion (L_max).
        buffer_tokens: Length of the slope below it (L_cache), 1 .. max_tokens.

    Example: compute_overlong_penalty(9_500, max_tokens=10_000, buffer_tokens=1_000) == -0.5
    """
    if not 1 <= buffer_tokens <= max_tokens:
        raise ValueError(
            f"buffer_tokens ({buffer_tokens}) must be 1 to max_tokens ({max_tokens}). Remedy: choose a buffer below "
            "the limit, a tenth of it in the recipe"
        )
    free_tokens = max_tokens - buffer_tokens
    return max(-1.0, min(0.0, (free_tokens - num_tokens) / buffer_tokens))
