"""Batching, from groups to what one rank trains on: rows with their advantages, then micro-batches under a token budget. Pure."""
