"""What ends with a run whatever happens to its processes, and what clears up behind one that was killed."""
