"""The policy of a rank: what a trainer process holds and calls. Every method is collective over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_ext.attention.cuda import active_flash
from megatron_ext.checkpoint import hf_weights
from megatron_ext.checkpoint.dist_checkpoint import CheckpointWriter, load_checkpoint
from megatron_ext.checkpoint.hf_weights import load_hf_weights
from megatron_ext.hf.files import read_model_config
from megatron_ext.hf.refusals import UnsupportedModelError
from megatron_ext.kernels.choice import AttentionBackend, KernelChoice, Library, resolve_kernels
from megatron_ext.model.policy_model import PolicyModel, build_model
from megatron_ext.model.routing_replay import follow_segments
from megatron_ext.optimizer.optimizer import (
    OptimizerOptions,
    arithmetic_of,
    build_optimizer,
    finish_weight_gather,
    optimizer_step,
    reset_optimizer,
    wrap_data_parallel,
)
from megatron_ext.optimizer.reference import ReferenceWeights
from megatron_ext.optimizer.residency import PARTS, ActivationOffload, Moved, Part, Residency
from megatron_ext.packing.micro_batch import MicroBatch
from megatron_ext.packing.routed_experts import Disagreement
from megatron_ext.packing.sums import LossFn
from megatron_ext.parallel.topology import Layout, Topology
from megatron_ext.schedule import Output, run_forward, run_forward_backward


@dataclass(frozen=True)
class TrainStepResult:
    """One optimizer step; equal on every rank."""

    loss: float
    """Mean over the step's tokens, of all data parallel ranks."""
    num_tokens: int
    sums: dict[str, float]
    """The loss callback's metrics, summed over micro-batches and data parallel ranks."""
    maxima: dict[str, float]
    """Its maxima, over the same."""
    grad_norm: float
    skipped: bool
    """The gradient or the loss was not finite, and nothing was changed."""
    routing: Disagreement | None = None
    """Disagreement of the model's routers with the experts that they replayed."""


class MegatronPolicy:
    """A Hugging Face model, cut for this rank, with its optimizer."""

    def __init__(
        self,
        hf_dir: str,
        layout: Layout,
        topology: Topology,
        *,
        dtype: torch.dtype,
        optimizer: OptimizerOptions | None,
        attention: AttentionBackend = "auto",
        kernels: KernelChoice = "auto",
        load_weights: bool = True,
        fp32_head: bool = False,
        activation_offload: bool = False,
        routing_replay: bool = False,
    ) -> None:
        """Builds the model, loads the weights and makes a fresh optimizer; without `optimizer` it cannot train.

        `load_weights=False` leaves the weights to `load_checkpoint`. `fp32_head` computes logits in float32 from lower
        precision. float64 is for tests and reference values, on a CPU. `activation_offload` keeps on the host what
        forward saves for backward. `kernels` says which library computes, see kernels/choice.py. `routing_replay` takes
        the experts that micro-batches bring along, in every pass; without it they may bring none.

        Raises UnsupportedModelError, LayoutError, KernelsError, AttentionBackendError or WeightsError, each with what
        is wrong and the remedy.
        """
        self.hf_dir = hf_dir
        self.layout = layout
        self.topology = topology
        self.hf_config = read_model_config(hf_dir)
        self.dtype = dtype
        self.kernels = resolve_kernels(kernels, attention, on_cuda=topology.device.type == "cuda")
        self._training = None
        if routing_replay and self.hf_config.moe is None:
            raise UnsupportedModelError(f"routing_replay with model_type = {self.hf_config.model_type!r}: no experts")
        self.routing_replay = routing_replay
        self._reference: ReferenceWeights | None = None
        with arithmetic_of(dtype):
            self.chunks = build_model(self.hf_config, layout, topology, dtype, self.kernels)
            for chunk in self.chunks:
                chunk.fp32_head = fp32_head
                if load_weights:
                    load_hf_weights(chunk, hf_dir, topology)
            if routing_replay:
                follow_segments(self.chunks)
            if optimizer is not None:
                self._training = _Training(self.chunks, optimizer, topology, layout, hf_dir, self.kernels.library)
        self.activation_offload: Callable[[], AbstractContextManager[None]] = nullcontext
        if activation_offload:
            self.activation_offload = ActivationOffload(p for chunk in self.chunks for p in chunk.parameters())

    @property
    def loss_dtype(self) -> torch.dtype:
        """The dtype of log-probabilities and loss inputs: float32, or float64 where the weights are."""
        return torch.promote_types(self.dtype, torch.float32)

    def describe_kernels(self) -> str:
        """One line: which library computes what on this rank, and the attention back end."""
        version = active_flash() if self.topology.device.type == "cuda" else None
        core = type(self.model.decoder.layers[0].self_attention.core_attention).__name__
        return f"{self.kernels.describe()} ({core}{f' by {version}' if version else ''})"

    @property
    def model(self) -> PolicyModel:
        """This stage's layers; with a virtual pipeline only the first of its `chunks`."""
        return self.chunks[0]

    @property
    def training(self) -> _Training:
        """Optimizer, checkpoints and memory of a policy that was opened with an optimizer; RuntimeError for others."""
        if self._training is None:
            raise RuntimeError("this policy was opened without an optimizer: it can be read and exported, not trained")
        return self._training

    def logprobs(
        self, micro_batches: Sequence[MicroBatch], *, temperature: float, with_entropy: bool = False
    ) -> list[Output] | None:
        """Per micro-batch float32 [N] log-probabilities and entropies (or None); None on all but the last stage.

        Every context parallel rank passes the same whole micro-batches and gets all N values, in their order.
        """
        self._require("weights")
        chunks = self.chunks if self._training is None else self._training.chunks
        with arithmetic_of(self.dtype):
            return run_forward(
                chunks,
                self.topology,
                micro_batches,
                temperature=temperature,
                with_entropy=with_entropy,
                replays_routing=self.routing_replay,
            )

    def keep_reference(self, hf_dir: str | Path | None = None) -> None:
        """Makes the weights in `hf_dir`, of this architecture, or else the present ones, those of the reference.

        Raises as loading a model does; the reference is then the one that it was.
        """
        self._require("weights")
        self._finish_weights()
        parameters = [parameter for chunk in self.chunks for parameter in chunk.parameters()]
        reference = ReferenceWeights(parameters, self.topology.computes_on)
        if hf_dir is not None:
            with reference.in_place(), arithmetic_of(self.dtype):
                for chunk in self.chunks:
                    load_hf_weights(chunk, hf_dir, self.topology)
        self._reference = reference

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, this is the reference policy: `logprobs` and `save_hf` are of its weights. Not for training.

        RuntimeError without a reference.
        """
        if self._reference is None:
            raise RuntimeError("this policy has no reference: keep_reference was not called")
        self._require("weights")
        self._finish_weights()
        with self._reference.in_place():
            yield

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
        training = self.training
        training.residency.require(*PARTS)
        for chunk in training.chunks:
            chunk.zero_grad_buffer()
        training.optimizer.zero_grad()
        with self.activation_offload(), arithmetic_of(self.dtype):
            sums = run_forward_backward(
                training.chunks,
                self.topology,
                micro_batches,
                loss_fn,
                temperature=temperature,
                with_entropy=with_entropy,
                replays_routing=self.routing_replay,
            )
            step = optimizer_step(training.optimizer, lr, loss=sums.loss)
        return TrainStepResult(
            loss=sums.mean_loss,
            num_tokens=sums.num_tokens,
            sums=sums.metrics,
            maxima=sums.maxima,
            grad_norm=step.grad_norm,
            skipped=step.skipped,
            routing=sums.routing,
        )

    def export_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face name and full tensor of each weight of this stage; all ranks of a stage iterate together."""
        self._require("weights")
        self._finish_weights()
        for chunk in self.chunks:
            yield from hf_weights.iterate_hf_tensors(chunk, self.topology)

    def local_parameters(self) -> dict[tuple[int, str], Tensor]:
        """This rank's own parameters by (chunk of its virtual pipeline, Megatron name): not copies, read only."""
        self._require("weights")
        self._finish_weights()
        return {
            (number, name): parameter.detach()
            for number, chunk in enumerate(self.chunks)
            for name, parameter in chunk.named_parameters()
        }

    def save_hf(self, out_dir: str | Path, dtype: torch.dtype | None = None) -> None:
        """Writes a complete Hugging Face directory; weights in `dtype`, or else that of the model that was opened."""
        self._require("weights")
        self._finish_weights()
        hf_weights.save_hf(self.chunks, self.topology, self.hf_dir, out_dir, dtype=dtype)

    def save_checkpoint(self, directory: str | Path, *, background: bool = False) -> None:
        """Writes weights, optimizer and random state, as a whole or not at all; see `CheckpointWriter.save`."""
        self.training.residency.require("weights", "optimizer")
        self._finish_weights()
        self.training.writer.save(directory, background=background)

    def finish_checkpoint(self, *, wait: bool = True) -> bool:
        """Commits a background save once it is written; whether none is under way any more."""
        return self.training.writer.finish(wait=wait)

    def load_checkpoint(self, directory: str | Path) -> None:
        """Restores a checkpoint, from any layout; bit for bit from the same. See `dist_checkpoint.load_checkpoint`."""
        optimizer = None
        if self._training is not None:
            self._training.residency.require("weights", "optimizer")
            optimizer = self._training.optimizer
        load_checkpoint(directory, self.chunks, optimizer, self.topology, self.layout)

    def reset_optimizer(self, options: OptimizerOptions) -> None:
        """Starts over with zero moments; the weights stay."""
        self.training.residency.require("optimizer")
        reset_optimizer(self.training.optimizer, options)

    def to_host(self, *parts: Part) -> Moved:
        """Frees this rank's device memory of these parts (default: all) between phases."""
        self._finish_weights()
        return self.training.residency.to_host(*parts)

    def to_device(self, *parts: Part) -> Moved:
        """Brings them back; gradients come back as zeros."""
        return self.training.residency.to_device(*parts)

    def close(self) -> None:
        """Finishes what is being saved."""
        if self._training is not None:
            self._training.writer.close()

    def _require(self, part: Part) -> None:
        if self._training is not None:
            self._training.residency.require(part)

    def _finish_weights(self) -> None:
        """Makes the weights whole for a reader that is no forward pass."""
        if self._training is not None and self._training.residency.is_on_device("weights"):
            finish_weight_gather(self._training.chunks, self.layout)


class _Training:
    """The parts that training adds to the model."""

    def __init__(
        self,
        chunks: list[PolicyModel],
        options: OptimizerOptions,
        topology: Topology,
        layout: Layout,
        hf_dir: str,
        library: Library,
    ) -> None:
        self.chunks = wrap_data_parallel(chunks, layout)
        self.optimizer = build_optimizer(self.chunks, options, layout, library)
        self.residency = Residency(self.chunks, self.optimizer, topology.computes_on)
        self.writer = CheckpointWriter(chunks, self.optimizer, topology, layout, hf_dir)
