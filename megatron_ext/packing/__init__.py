"""Rows packed into micro-batches, and sums of losses over them."""
