"""A training step of a model in the shape of Qwen3-0.6B on one row of 65,536 tokens."""

from __future__ import annotations

import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.gpu.models import GIB, draw_rows, one_rank, open_policy, pack, train, write_model
from tests.gpu.report import Report
from tests.gpu.sizes import Sizes

PEER = {"mfu": 0.268, "tokens_per_s": 10_150, "peak_gib": 19.6}
"""prime-rl's RL step of Qwen3-0.6B at 65,536 tokens on one H100 (its benchmarks/results/BENCHMARKS.md)."""
PEAK_TFLOPS = {"H100": 989.4, "H200": 989.4, "H800": 989.4, "A100": 312.0, "B200": 2250.0}
"""Operations per second of dense products in bfloat16, as the vendor gives them."""


def train_step(report: Report, sizes: Sizes) -> None:
    """Tokens per second, share of the GPU's peak and peak memory, by what is recomputed; every token is predicted."""
    from megatron_ext.parallel.layout import Layout

    batch = pack(draw_rows([sizes.step_tokens], sizes.step.vocab))
    dtype = torch.bfloat16
    report.note(tokens=sizes.step_tokens, parameters=sizes.step.num_parameters, peer=PEER)
    with tempfile.TemporaryDirectory() as folder, one_rank() as topology:
        hf_dir = write_model(sizes.step, Path(folder), dtype)
        runs: dict[str, dict[str, Any]] = {}
        for recompute in ("full", "selective", "none"):
            try:
                policy = open_policy(hf_dir, topology, dtype, layout=Layout(recompute=recompute), eps=1e-8)
                runs[recompute] = measure(policy, batch, sizes)
            except torch.OutOfMemoryError:
                runs[recompute] = {"out_of_memory": True}
            report.note(**{recompute: runs[recompute]})
            policy = None
            gc.collect()  # Megatron's buffers and hooks refer to each other
            if topology.device.type == "cuda":
                torch.cuda.empty_cache()
        report.require("loss" in runs["full"], "the step does not fit with full recompute")
        losses = [run["loss"] for run in runs.values() if "loss" in run]
        report.require(max(losses) - min(losses) <= 2e-2, f"losses differ by what is recomputed: {losses}")
        report.require(losses[0] < runs["full"]["first_loss"], f"the loss did not fall: {runs['full']}")
        if topology.device.type == "cuda":
            best = max(runs.values(), key=lambda run: run.get("tokens_per_s", 0.0))
            report.note(beats_peer=bool((best.get("mfu") or 0.0) > PEER["mfu"]))


def measure(policy: Any, batch: Any, sizes: Sizes) -> dict[str, Any]:
    """Measurements of the steps after the first."""
    on_gpu = policy.topology.device.type == "cuda"
    first = train(policy, [batch])
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(sizes.step_repeats):
        last = train(policy, [batch])
    if on_gpu:
        torch.cuda.synchronize()
    rate = sizes.step_repeats * sizes.step_tokens / (time.perf_counter() - started)
    result = {"tokens_per_s": rate, "first_loss": first.loss, "loss": last.loss, "kernels": policy.describe_kernels()}
    if on_gpu:
        name = torch.cuda.get_device_name()
        peak = next((tflops for known, tflops in PEAK_TFLOPS.items() if known in name), None)
        achieved = rate * sizes.step.flops_per_token(sizes.step_tokens) / 1e12
        result |= {"mfu": achieved / peak if peak else None, "tflops": achieved}
        result["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
    return result
