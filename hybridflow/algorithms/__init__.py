"""Reinforcement learning as functions: advantages, group filters, the policy loss.

Pure. `losses.py` needs torch; the rest is plain Python.
"""
