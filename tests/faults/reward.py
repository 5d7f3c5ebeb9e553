"""A verifier that tells completions of an untrained model apart, so that each step trains on something."""


def even(response: str) -> float:
    return float(sum(response.encode()) % 2 == 0)
