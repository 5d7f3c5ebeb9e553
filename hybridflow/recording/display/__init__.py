"""The live display of a run, and the state that it shows."""
