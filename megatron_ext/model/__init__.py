"""The policy model: Megatron's config of it, layers, norms, log-probabilities."""
