"""The policy of a rank: what a trainer process holds and calls. Every method is collective over all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_ext import checkpoint
from megatron_ext.attention_cuda import AttentionBackend
from megatron_ext.hf import export
from megatron_ext.hf.config import read_hf_config
from megatron_ext.hf.load import load_hf_weights
from megatron_ext.model import PolicyModel, build_model
from megatron_ext.optimizer import (
    OptimizerOptions,
    build_optimizer,
    finish_weight_gather,
    optimizer_step,
    reset_optimizer,
    wrap_data_parallel,
)
from megatron_ext.packing import MicroBatch
from megatron_ext.schedule import run_forward, run_forward_backward
from megatron_ext.sums import LossFn
from megatron_ext.topology import Layout, Topology


@dataclass(frozen=True)
class TrainStepResult:
    """One optimizer step; equal on every rank."""

    loss: float
    """Mean over the step's tokens, of all data parallel ranks."""
    num_tokens: int
    sums: dict[str, float]
    """The loss callback's metrics, summed over micro-batches and data parallel ranks."""
    grad_norm: float
    skipped: bool
    """The gradient or the loss was not finite, and nothing was changed."""


class MegatronPolicy:
    """A Hugging Face model, cut for this rank, with its optimizer."""

    def __init__(
        self,
        hf_dir: str,
        layout: Layout,
        topology: Topology,
        *,
        dtype: torch.dtype,
        optimizer: OptimizerOptions,
        attention: AttentionBackend = "auto",
    ) -> None:
        """Builds the model, loads the weights and makes a fresh optimizer.

        Raises UnsupportedModelError, LayoutError, AttentionBackendError or WeightsError, each with what is wrong and the
        remedy.
        """
        self.hf_dir = hf_dir
        self.layout = layout
        self.topology = topology
        self.hf_config = read_hf_config(hf_dir)
        self.chunks = build_model(self.hf_config, layout, topology, dtype, attention)
        for chunk in self.chunks:
            load_hf_weights(chunk, hf_dir, topology)
        self._parallel_chunks = wrap_data_parallel(self.chunks, layout)
        self._optimizer = build_optimizer(self._parallel_chunks, optimizer, layout)

    @property
    def model(self) -> PolicyModel:
        """This stage's layers; with a virtual pipeline only the first of its `chunks`."""
        return self.chunks[0]

    def logprobs(
        self, micro_batches: Sequence[MicroBatch], *, temperature: float, with_entropy: bool = False
    ) -> list[tuple[Tensor, Tensor | None]] | None:
        """Per micro-batch float32 [N] log-probabilities and entropies (or None); None on all but the last stage.

        Every context parallel rank passes the same whole micro-batches and gets all N values, in their order.
        """
        return run_forward(
            self._parallel_chunks, self.topology, micro_batches, temperature=temperature, with_entropy=with_entropy
        )

    def train_step(
        self,
        micro_batches: Sequence[MicroBatch],
        loss_fn: LossFn,
        *,
        lr: float,
        temperature: float,
        with_entropy: bool = False,
    ) -> TrainStepResult:
        """Gradient of the loss per token over all micro-batches and data parallel ranks, then one AdamW step.

        Every context parallel rank passes the same whole micro-batches; the loss callback gets its part of each.
        """
        for chunk in self._parallel_chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        sums = run_forward_backward(
            self._parallel_chunks,
            self.topology,
            micro_batches,
            loss_fn,
            temperature=temperature,
            with_entropy=with_entropy,
        )
        step = optimizer_step(self._optimizer, lr, loss=sums.loss)
        return TrainStepResult(
            loss=sums.mean_loss,
            num_tokens=sums.num_tokens,
            sums=sums.metrics,
            grad_norm=step.grad_norm,
            skipped=step.skipped,
        )

    def export_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face name and full tensor of each weight of this stage; tensor parallel ranks iterate together."""
        finish_weight_gather(self._parallel_chunks, self.layout)
        for chunk in self.chunks:
            yield from export.iterate_hf_tensors(chunk, self.topology)

    def save_hf(self, out_dir: str | Path) -> None:
        """Writes a complete Hugging Face directory."""
        finish_weight_gather(self._parallel_chunks, self.layout)
        export.save_hf(self.chunks, self.topology, self.hf_dir, out_dir)

    def save_checkpoint(self, directory: str | Path) -> None:
        """Writes weights, optimizer and random state."""
        finish_weight_gather(self._parallel_chunks, self.layout)
        checkpoint.save_checkpoint(directory, self.chunks, self._optimizer, self.topology, self.layout)

    def load_checkpoint(self, directory: str | Path) -> None:
        """Restores them, from any layout; bit for bit from the same."""
        checkpoint.load_checkpoint(directory, self.chunks, self._optimizer, self.topology, self.layout)

    def reset_optimizer(self, options: OptimizerOptions) -> None:
        """Starts over with zero moments; the weights stay."""
        reset_optimizer(self._optimizer, options)
