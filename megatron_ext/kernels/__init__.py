"""Choice of kernels, which library computes what: torch, Transformer Engine or Apex."""
