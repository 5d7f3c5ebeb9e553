"""The same arithmetic with transformers and torch alone, row by row, unpacked and on one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_ext.optimizer.optimizer import OptimizerOptions
from megatron_ext.packing.micro_batch import PackInput
from tests.dist_cpu.tiny_models import load_model, make_rows

RowsLoss = Callable[[Sequence[Tensor]], Tensor]
"""The loss of a step from the [N] log-probabilities of each row."""


def row_logprobs(model: PreTrainedModel, row: PackInput, temperature: float) -> Tensor:
    """Float32 [N] log-probabilities of the tokens that `row` predicts, with their gradient."""
    tokens = torch.tensor(row.token_ids)
    predicted_N = torch.tensor([row.predict_from + i for i, mask in enumerate(row.predict_mask) if mask])
    logits = model(tokens[None]).logits[0, predicted_N - 1] / temperature
    return logits.log_softmax(-1).gather(1, tokens[predicted_N][:, None])[:, 0]


@functools.cache
def compute_logprobs(hf_dir: Path, temperature: float) -> list[Tensor]:
    """Log-probabilities of each of the rows that all tests share."""
    model = load_model(hf_dir)
    with torch.no_grad():
        return [row_logprobs(model, row, temperature) for row in make_rows()]


def sequence_mean(logprobs: Sequence[Tensor]) -> Tensor:
    """Mean over rows of each row's mean negative log-likelihood."""
    return -torch.stack([logprobs_N.mean() for logprobs_N in logprobs]).mean()


def train(
    hf_dir: Path, loss: RowsLoss, options: OptimizerOptions, *, steps: int, temperature: float
) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """Losses and gradient norms of AdamW steps on the shared rows, and the weights after them."""
    model = load_model(hf_dir)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=options.betas, eps=options.eps)
    losses, norms = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss([row_logprobs(model, row, temperature) for row in make_rows()])
        value.backward()
        losses.append(value.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_grad).item())
        optimizer.step()
    return losses, norms, {name: tensor.detach() for name, tensor in model.state_dict().items()}
