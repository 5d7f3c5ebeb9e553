"""The record of a run: its metrics, files, totals and summary. Knows what was done, never how."""
