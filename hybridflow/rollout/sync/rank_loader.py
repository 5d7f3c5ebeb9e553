"""Loader in SGLang's ranks: takes a round of shards, one flat tensor, into the model's parameters.

SGLang calls it (`custom_weight_loader`) instead of a loader of its own, and answers when it returns. With its own it
answers while the GPU still copies; the train worker would then write another round into memory that is being read.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor

from hybridflow.weights.reshard.receipt import MISSING, ShardOrder, confirm
from hybridflow.weights.reshard.shard_bucket import checksums, cut_buffer

LOADER = "hybridflow.rollout.sync.rank_loader.load_shards"
"""As SGLang imports it."""


@torch.no_grad()
def load_shards(model: Any, named_tensors: list[tuple[str, Tensor]]) -> None:
    """Copies each shard, waits for the device, and confirms what the parameters then are.

    `named_tensors` is one pair: a `ShardOrder` as JSON, and the bytes, uint8 on the model's device. A parameter that is
    not there as it was sent is confirmed as missing, and the engine says so: an error here would end SGLang.
    """
    ((text, bytes_B),) = named_tensors
    order = msgspec.json.decode(text, type=ShardOrder)
    parameters = dict(model.named_parameters())
    loaded: list[Tensor | None] = []
    for name, shard in cut_buffer(bytes_B, order.shapes, getattr(torch, order.dtype)):
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != shard.shape:
            loaded.append(None)
            continue
        parameter.data.copy_(shard)
        loaded.append(parameter.data)
    values = iter(checksums([one for one in loaded if one is not None], on_host=order.on_host))
    found = [MISSING if one is None else next(values) for one in loaded]
    wait_for(bytes_B.device)
    confirm(order, found)


def wait_for(device: torch.device) -> None:
    """Waits until all that was started on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
