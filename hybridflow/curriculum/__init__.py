"""Prompts of each training step: where they come from, and when a step has enough groups of them. Pure.

A source (`source.py`) hands out prompts and learns from the groups that came of them; a step rule (`step_rule.py`) says
which complete groups count. `build.py` chooses both; a further source or rule is a module of its own here.
"""
