"""Driver's side of the rollout engines: dispatch, supervision and weights for all of them."""
