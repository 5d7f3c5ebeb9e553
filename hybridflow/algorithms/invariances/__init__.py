"""The invariance suite: what must not change the numbers of a part of an algorithm, tried on made-up values.

It runs on registered parts and on functions of a user's own alike (`hybridflow check-algorithm`, `hybridflow check`,
tests), in one process, with torch alone. Context parallel ranks are threads.

    kind                          what must hold
    loss, metrics (of_tokens)     shape, dtype, finite; rows without tokens; the same twice; inputs untouched; order of
                                  rows, packing, micro-batch size, data parallel and context parallel ranks; extreme log
                                  ratios; the gradient reaches the policy, and from no row another one
    aggregation (of_tokens)       sums and denominators: order, packing, micro-batch size, ranks
    advantage, filter (of_groups) one finite number per known reward, a name or None; order of groups and of members;
                                  the same twice; inputs untouched; equal and unknown rewards
    mask (of_rows)                0 and 1, and never 1 where it was 0; the same twice; inputs untouched
"""
