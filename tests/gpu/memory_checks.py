"""Memory: what leaves the device when it is told to, and what the output layer takes."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.gpu.models import allocated, device, draw_rows, one_rank, open_policy, pack, train, write_model
from tests.gpu.report import Report
from tests.gpu.sizes import Sizes

STAND_IN = Path(__file__).parents[1] / "dist_cpu/stand_ins/te"
LARGEST_EXTRA_MIB = 640.0
"""Bound on the output layer's memory above inputs, weights and gradients: two chunks of logits, and sums."""


def residency_torch(report: Report, sizes: Sizes) -> None:
    """Weights, gradients and the moments of torch's AdamW leave the device and come back."""
    _move(report, sizes, "torch")


def residency_fused(report: Report, sizes: Sizes) -> None:
    """The same with Transformer Engine's FusedAdam, where it is; a dry run has the stand-in of tests/dist_cpu."""
    from megatron_ext.kernels.choice import find_obstacle

    if sizes.is_dry:
        sys.path.append(str(STAND_IN))
    if find_obstacle("transformer_engine"):
        report.note(skipped="Transformer Engine is not installed")
        return
    _move(report, sizes, "transformer_engine")


def _move(report: Report, sizes: Sizes, library: Any) -> None:
    batch = pack(draw_rows(sizes.row_lengths, sizes.small.vocab))
    with tempfile.TemporaryDirectory() as folder, one_rank() as topology:
        hf_dir = write_model(sizes.small, Path(folder))
        stays, moves = (open_policy(hf_dir, topology, torch.bfloat16, kernels=library) for _ in range(2))
        for policy in (stays, moves):
            train(policy, [batch])
        moves.keep_reference()
        at_reference = moves.logprobs([batch], temperature=1.0)
        residency = moves.training.residency
        parts = {part: residency.num_bytes(part) for part in ("weights", "gradients", "optimizer")}
        before = allocated()
        moved = moves.to_host()
        freed = before - allocated()
        back = moves.to_device()
        report.note(library=library, parts_mib={name: size / 2**20 for name, size in parts.items()})
        report.note(freed_mib=moved.freed_bytes / 2**20, seconds_away=moved.seconds, seconds_back=back.seconds)
        expected = sizes.small.num_parameters * (2 + 4 + 12)  # bfloat16, float32 gradients, master weights and moments
        report.require(
            moved.freed_bytes >= expected, f"{moved.freed_bytes} bytes left, {expected} or more were expected"
        )
        report.require(-back.freed_bytes == moved.freed_bytes, "what came back is not what left")
        if device().type == "cuda":
            report.note(allocator_freed_mib=freed / 2**20)
            report.require(
                freed >= 0.97 * moved.freed_bytes, f"the allocator has {freed} bytes more, not all that left"
            )
        steps = [train(policy, [batch]) for policy in (stays, moves)]
        report.note(loss=steps[0].loss, loss_after_a_move=steps[1].loss)
        report.require(abs(steps[0].loss - steps[1].loss) <= 1e-3, "training goes on otherwise after a move")
        _exchange(report, moves, batch, at_reference)


def _exchange(report: Report, policy: Any, batch: Any, expected: Any) -> None:
    """The reference in and out: it computes as when it was kept, and the policy has its bits again."""
    before = [parameter.detach().clone() for parameter in policy.model.parameters()]
    started = time.perf_counter()
    with policy.as_reference():
        report.note(reference_in_s=time.perf_counter() - started)
        found = policy.logprobs([batch], temperature=1.0)
    report.require(torch.equal(found[0].logprobs_N, expected[0].logprobs_N), "the reference computes otherwise")
    pairs = zip(before, policy.model.parameters(), strict=True)
    report.require(all(torch.equal(old, new) for old, new in pairs), "the policy has other weights after the reference")


def logprob_memory(report: Report, sizes: Sizes) -> None:
    """Forward and backward of the output layer over a long response: peak above inputs; values of the first rows."""
    from megatron_ext.model.logprob import vocab_parallel_logprobs

    with one_rank() as topology:
        generator = torch.Generator().manual_seed(4)
        shape = (sizes.head_tokens, sizes.head_hidden)
        hidden = torch.randn(shape, generator=generator).to(topology.device, torch.bfloat16).requires_grad_()
        weight = torch.randn(sizes.head_vocab, sizes.head_hidden, generator=generator) * sizes.head_hidden**-0.5
        weight = weight.to(topology.device, torch.bfloat16).requires_grad_()
        weight.main_grad = torch.zeros(weight.shape, device=topology.device)  # type: ignore[attr-defined]
        targets = torch.randint(0, sizes.head_vocab, shape[:1], generator=generator).to(topology.device)
        hidden.grad = torch.zeros_like(hidden)
        before = allocated()
        if topology.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        logprobs, _ = vocab_parallel_logprobs(
            hidden,
            weight,
            targets,
            temperature=1.0,
            tp_group=topology.tp_group,
            vocab_size=sizes.head_vocab,
            with_entropy=False,
        )
        logprobs.sum().backward()
        if topology.device.type == "cuda":
            extra = (torch.cuda.max_memory_allocated() - before) / 2**20
            report.note(peak_mib=extra)
            report.require(extra <= LARGEST_EXTRA_MIB, f"{extra:.0f} MiB above the inputs, at most {LARGEST_EXTRA_MIB}")
        first = slice(0, 64)
        expected = (hidden[first].detach().float() @ weight.detach().float().T).log_softmax(-1)
        expected = expected.gather(1, targets[first, None])[:, 0]
        gap = (logprobs[first].detach() - expected).abs().mean().item()
        report.note(mean_gap=gap, naive_mib=3 * 4 * sizes.head_tokens * sizes.head_vocab / 2**20)
        report.require(gap <= 0.02, f"log-probabilities are {gap} from those of full float32 logits")
