"""Verdicts on completions: pure functions of the text and the gold answer, no I/O and no model.

The door is `registry.Registry(section).verify(request)`, by rule. What a model judge is asked, what its answer means,
and how both make one verdict is in `judge_prompt` and `judge_verdict`; who asks it is not.
"""
