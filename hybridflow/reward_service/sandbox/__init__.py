"""The sandbox of verifiers: a process that scores, and may be killed for one item without losing another."""
