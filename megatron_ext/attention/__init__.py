"""Packed attention: kernels on CUDA and on a CPU, context parallel exchange, rotary tables."""
