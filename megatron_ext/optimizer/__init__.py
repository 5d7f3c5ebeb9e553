"""Mixed precision Adam, learning rates, and where weights and moments reside."""
