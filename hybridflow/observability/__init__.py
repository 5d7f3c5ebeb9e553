"""Output of a run while it runs: logs, trackers, the live display and memory samples. Never imports torch."""
