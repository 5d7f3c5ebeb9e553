"""The guardian: ends every process of a run, and clears up behind one that was killed."""
