"""The folder that every kind of run leaves on disk, and how it is continued: folder, checkpoints, summary."""
