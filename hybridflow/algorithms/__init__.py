"""Reinforcement learning as functions: advantages, group filters, the policy loss, the gap between trainer and engine.

Pure. `losses.py` and `logprob_gap.py` need torch; the rest is plain Python.
"""
