"""Which library computes what, by choice: torch, Transformer Engine or Apex."""
