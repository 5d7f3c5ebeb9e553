"""What every kind of run leaves on disk, and how it is continued: folder, checkpoints, summary."""
