"""Checks that find what would stop a run later, before anything is started: all of it at once, each with its remedy.

`run.run_checks` goes through one of two lists. QUICK needs no torch and no transformers: it ends before `train` imports
them. THOROUGH reads the model with the libraries of the run. A check is a function from the Subject to Findings.
`inputs` reads data and model for the run itself.
"""
