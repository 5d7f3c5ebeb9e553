"""Attention back ends against plain attention, and their time on one long row."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from torch import Tensor

from tests.gpu.models import device, one_rank
from tests.gpu.report import Report
from tests.gpu.sizes import Sizes

LARGEST_ERROR = 0.02
"""Largest difference of output and gradients in bfloat16, as a share of their norm."""


def attention_backends(report: Report, sizes: Sizes) -> None:
    """Output and gradients of each back end that runs here, on packed rows; TFLOP/s of one long row, both ways."""
    from megatron_ext.attention.cuda import MODULES

    with one_rank() as topology:
        if topology.device.type == "cpu":
            write_varlen_out()
        case = Case(sizes, sizes.attention_lengths, topology)
        expected = plain_attention(case)
        for name in MODULES:
            version = choose(name)
            if version is None:
                report.note(**{name: "not installed"})
                continue
            try:
                found = case.run(MODULES[name])
                errors = [relative_error(mine, theirs) for mine, theirs in zip(found, expected, strict=True)]
                worst = max(errors)
                speed = Case(sizes, (sizes.attention_timed,), topology).measure(MODULES[name])
            except (RuntimeError, ValueError, NotImplementedError, TypeError) as error:
                report.require(False, f"{name}: {type(error).__name__}: {str(error)[:300]}")
                continue
            report.note(**{name: {"by": version, "error": worst, "tflops": speed}})
            report.require(worst <= LARGEST_ERROR, f"{name}: output or gradients are {worst} from plain attention")


def choose(name: str) -> str | None:
    """Who computes a back end, activated; None where it is not installed."""
    if name == "varlen" and device().type == "cuda":
        from megatron_ext.attention.cuda import activate_flash

        return activate_flash(torch.cuda.get_device_capability()[0]) or "FA2"
    if name == "transformer_engine":
        from megatron_ext.kernels.choice import find_obstacle

        if device().type == "cpu" or find_obstacle("transformer_engine"):
            return None
    return "torch" if name in ("sdpa", "varlen") else name


def write_varlen_out() -> None:
    """On a CPU torch has no such kernel: what it documents, computed row by row."""
    from torch.nn.attention import varlen

    from tests.dist_cpu.kernel_programs import varlen_by_hand

    varlen.varlen_attn = varlen_by_hand  # type: ignore[assignment]


class Case:
    """Queries, keys, values and output gradients of packed rows, in bfloat16."""

    def __init__(self, sizes: Sizes, lengths: tuple[int, ...], topology: Any) -> None:
        from megatron_ext.attention.context_split import RankBatch
        from megatron_ext.attention.packed import build_packed_segments
        from megatron_ext.packing.micro_batch import PackInput, pack_sequences

        shape = sizes.step
        self.shape, self.lengths, self.repeats = shape, lengths, sizes.step_repeats
        starts = torch.tensor([0, *itertools.accumulate(lengths)])
        batch = RankBatch(pack_sequences([PackInput([0], 1, [])]), starts, torch.empty(0))
        self.segments = build_packed_segments(batch, topology.cp_group, topology.device)
        generator = torch.Generator().manual_seed(2)
        self.inputs = [
            torch.randn(sum(lengths), 1, heads, shape.head_dim, generator=generator).to(topology.device, torch.bfloat16)
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        ]
        grad = torch.randn(sum(lengths), 1, shape.heads * shape.head_dim, generator=generator)
        self.grad = grad.to(topology.device, torch.bfloat16)

    def run(self, module: Any) -> list[Tensor]:
        """Output and the gradients of queries, keys and values."""
        from megatron.core.transformer.enums import AttnMaskType
        from megatron.core.transformer.transformer_config import TransformerConfig

        config = TransformerConfig(
            num_layers=1,
            hidden_size=self.shape.heads * self.shape.head_dim,
            num_attention_heads=self.shape.heads,
            num_query_groups=self.shape.kv_heads,
            kv_channels=self.shape.head_dim,
            bf16=True,
            params_dtype=torch.bfloat16,
            attention_dropout=0.0,
        )
        attention = module(config=config, layer_number=1, attn_mask_type=AttnMaskType.causal, attention_type="self")
        inputs = [tensor.detach().requires_grad_() for tensor in self.inputs]
        output = attention(*inputs, None, packed_seq_params=self.segments)
        output.backward(self.grad)
        return [output.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]

    def measure(self, module: Any) -> float:
        """TFLOP/s of forward and backward: 14 per query, key and query width; half of the keys are visible."""
        self.run(module)
        started = now()
        for _ in range(self.repeats):
            self.run(module)
        seconds = (now() - started) / self.repeats
        visible = sum(length**2 / 2 for length in self.lengths)
        return 14 * visible * self.shape.heads * self.shape.head_dim / seconds / 1e12


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def plain_attention(case: Case) -> list[Tensor]:
    """Softmax of all scores of a row, in float32, row by row."""
    inputs = [tensor[:, 0].float().requires_grad_() for tensor in case.inputs]
    outputs = []
    for query, key, value in zip(*(tensor.split(case.lengths) for tensor in inputs), strict=True):
        groups = case.shape.heads // case.shape.kv_heads
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) * case.shape.head_dim**-0.5
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, value))
    output = torch.cat(outputs).flatten(1)[:, None]
    output.backward(case.grad.float())
    return [output.detach(), *(tensor.grad[:, None] for tensor in inputs if tensor.grad is not None)]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()
