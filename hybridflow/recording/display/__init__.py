"""The live display, its state, and the lines of a step."""
