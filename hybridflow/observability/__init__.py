"""Logs of processes, spans of what they do, the reporter to a user, and text made safe to show. Never imports torch."""
