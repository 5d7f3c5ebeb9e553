"""Opening and ending of runs: concrete parts, colocation, the way of the weights, teardown of all processes."""
