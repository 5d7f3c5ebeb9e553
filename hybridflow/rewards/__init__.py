"""Verdicts on completions by rule: pure functions of the text and the gold answer, no I/O and no model.

The door is `registry.verify(request)`. A later judge takes `Scored.extracted` of a verdict that is not 1.
"""
