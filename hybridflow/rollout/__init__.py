"""Rollout with SGLang: the driver's side of all engines, the engine, its end of a weight sync, and SGLang on a CPU."""
