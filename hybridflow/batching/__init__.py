"""Batching, from groups to what a rank trains on: rows with advantages, micro-batches under a token budget. Pure."""
