"""Packed, response-only policy training on unmodified Megatron-Core, on CUDA or on a CPU.

The library knows Megatron and torch and nothing of the system around it: micro-batches come in packed, the loss comes
in as a callable. Importing this package does not import Megatron, so that `platform.install()` can run first.
"""
