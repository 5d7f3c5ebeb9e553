"""Stand-alone extensions of Megatron-Core: CPU platform, attention, logprobs, schedule. Never imports hybridflow."""
