"""Processes that score completions: `worker.py` the loop and its Ray shell, `worker_group.py` the driver's end."""
