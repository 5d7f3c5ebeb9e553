"""Rules that compare an answer with a gold, and the verdict of each."""
