"""Logs of processes, spans of what they do, and text made safe to show. Never imports torch."""
