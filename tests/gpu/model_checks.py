"""A model on this device against transformers, and against the same on a CPU."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.gpu.models import draw_rows, nll, one_rank, open_policy, pack, train, write_model
from tests.gpu.report import Report
from tests.gpu.sizes import Shape, Sizes

FLOAT32_GAP = 2e-4
"""Largest mean |difference| of log-probabilities in float32; they are near -10."""
BFLOAT16_FACTOR = 1.5
"""In bfloat16 Megatron may be so many times as far from float32 as transformers is."""


def hf_agreement(report: Report, sizes: Sizes) -> None:
    """Log-probabilities of transformers and of Megatron, in float32 and bfloat16, and gradient norms in float32."""
    rows = draw_rows(sizes.row_lengths, sizes.small.vocab)
    with tempfile.TemporaryDirectory() as folder, one_rank() as topology:
        hf_dir = write_model(sizes.small, Path(folder))
        found, theirs = {}, {}
        for dtype in (torch.float32, torch.bfloat16):
            policy = open_policy(hf_dir, topology, dtype)
            (output,) = policy.logprobs([pack(rows)], temperature=1.0) or []
            found[dtype] = output[0].float().cpu()
            theirs[dtype], norm = transformers_logprobs(hf_dir, rows, dtype)
            gap = (found[dtype] - theirs[dtype]).abs()
            name = str(dtype).removeprefix("torch.")
            report.note(**{f"{name}_mean_gap": gap.mean().item(), f"{name}_max_gap": gap.max().item()})
            if dtype == torch.float32:
                ours = train(policy, [pack(rows)]).grad_norm
                report.note(float32_grad_norm=ours, transformers_grad_norm=norm)
                report.require(abs(ours - norm) <= 2e-3 * norm, f"gradient norm {ours}, transformers has {norm}")
                report.require(gap.mean().item() <= FLOAT32_GAP, f"float32: mean gap above {FLOAT32_GAP}")
            del policy
        exact = theirs[torch.float32]
        ours, others = ((side[torch.bfloat16] - exact).abs().mean().item() for side in (found, theirs))
        report.note(bfloat16_from_float32=ours, transformers_bfloat16_from_float32=others)
        report.require(ours <= BFLOAT16_FACTOR * others, f"bfloat16 is {ours} from float32, transformers is {others}")


def transformers_logprobs(hf_dir: Path, rows: Sequence[Sequence[int]], dtype: torch.dtype) -> tuple[Tensor, float]:
    """[N] of all rows, one after the other, and the gradient norm of the mean loss per token."""
    from transformers import AutoModelForCausalLM

    from tests.gpu.models import device

    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=dtype, attn_implementation="sdpa").to(device())
    num_tokens, logprobs = sum(len(row) - 1 for row in rows), []
    for row in rows:
        tokens_1T = torch.tensor([row], device=device())
        logits_TV = model(input_ids=tokens_1T).logits[0, :-1].float()
        picked_T = logits_TV.log_softmax(-1).gather(1, tokens_1T[0, 1:, None])[:, 0]
        (-picked_T.sum() / num_tokens).backward()
        logprobs.append(picked_T.detach().cpu())
    squares = [parameter.grad.float().square().sum() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat(logprobs), torch.stack(squares).sum().sqrt().item()


def against_cpu(report: Report, sizes: Sizes) -> None:
    """Forward, backward and one AdamW step in float32: on this device, and by Megatron in a process without a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        hf_dir = write_model(sizes.small, Path(folder) / "model")
        kept = Path(folder) / "cpu.pt"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        start = "fork" if sizes.is_dry else "spawn"
        other = multiprocessing.get_context(start).Process(
            target=train_once, args=(str(hf_dir), str(kept), sizes.small, sizes.row_lengths)
        )
        other.start()
        if hidden is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
        train_once(str(hf_dir), f"{folder}/here.pt", sizes.small, sizes.row_lengths)
        other.join()
        if other.exitcode != 0:
            report.require(False, f"the process without a GPU ended with {other.exitcode}")
            return
        here, there = torch.load(f"{folder}/here.pt"), torch.load(kept)
    gap = (here["logprobs"] - there["logprobs"]).abs().mean().item()
    apart = max((here["weights"][name] - expected).abs().max().item() for name, expected in there["weights"].items())
    report.note(device=here["device"], other=there["device"], mean_gap=gap, largest_weight_gap=apart)
    report.note(loss=here["loss"], loss_gap=abs(here["loss"] - there["loss"]))
    report.note(grad_norm_gap=abs(here["grad_norm"] - there["grad_norm"]))
    report.require(there["device"] == "cpu", f"the other side ran on {there['device']}")
    report.require(gap <= FLOAT32_GAP, f"log-probabilities differ by {gap} in the mean")
    report.require(abs(here["grad_norm"] - there["grad_norm"]) <= 2e-3 * there["grad_norm"], "gradient norms differ")
    report.require(apart <= 1e-4, f"a weight differs by {apart} after a step of 1e-3")


def train_once(hf_dir: str, out_path: str, shape: Shape, lengths: tuple[int, ...]) -> None:
    """Log-probabilities before, loss and gradient norm of a step, Hugging Face tensors after; to a file."""
    rows = draw_rows(lengths, shape.vocab)
    with one_rank() as topology:
        policy = open_policy(Path(hf_dir), topology, torch.float32)
        (output,) = policy.logprobs([pack(rows)], temperature=1.0) or []
        step: Any = policy.train_step([pack(rows)], nll, lr=1e-3, temperature=1.0)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in policy.export_tensors()}
        result = {
            "device": topology.device.type,
            "logprobs": output[0].float().cpu(),
            "loss": step.loss,
            "grad_norm": step.grad_norm,
            "weights": weights,
        }
        torch.save(result, out_path)
