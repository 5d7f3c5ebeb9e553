"""Processes that score completions: `worker.py` the loop, free of Ray, and `actor.py` its Ray shell."""
