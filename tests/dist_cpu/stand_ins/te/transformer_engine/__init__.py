"""A stand-in for Transformer Engine on a CPU: names, arguments and results of its kernels, and their calls."""

from collections import Counter

CALLS: Counter[str] = Counter()
