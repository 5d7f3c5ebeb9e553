"""Long-context GRPO: Megatron-Core training and SGLang rollout in one Ray job, from a laptop CPU to a cluster."""

__version__ = "0.1.0"
