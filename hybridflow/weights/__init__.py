"""Moves the trainer's weights to the rollout engines, and proves that they arrived."""
