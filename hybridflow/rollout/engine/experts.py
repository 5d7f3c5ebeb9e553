"""Experts that SGLang chose: asked for with a request, and read from its answer.

SGLang 0.5.23 keeps what its routers chose beside the keys and values, in a host buffer with a row for each slot of the
KV pool. So a prefix that came from the cache has the experts that computed it, whichever request that was, and a
request that was dropped and computed again has those of the second time: always those of the keys and values that its
tokens were decoded with. Of the last token there are none, as it was never put through the model.

The prompt of a group is computed once, by a request of its own (`generation.py`), which also tells its experts. The
completions of the group tell theirs from the last token of the prompt on: SGLang would send those of the prompt with
each, as base64 of int32. A completion that had to compute the prompt again, because it fell out of the cache, has the
same experts but for rounding.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridflow.errors import RolloutError
from hybridflow.types import Packed
from megatron_ext.hf.config import Experts
from megatron_ext.hf.files import read_model_config


@dataclass(frozen=True)
class ExpertReader:
    """Reads answers of a model with these experts."""

    experts: Experts

    def read(self, encoded: str | None, num_tokens: int, what: str) -> Packed:
        """Experts of so many tokens: layers with experts x experts of a token, a byte each where there are at most 256.

        `encoded` is base64 of int32 [tokens, all layers, experts of a token].

        Raises RolloutError, naming `what`, where it says nothing, of another number of tokens, or of experts that the
        model has not.
        """
        remedy = 'Remedy: take out of rollout.sglang how experts are computed, or set algorithm.routing_replay = "off"'
        if encoded is None:
            raise RolloutError(f"SGLang does not say which experts computed {what}. {remedy}")
        shape = (num_tokens, len(self.experts.layers), self.experts.experts_per_token)
        try:
            numbers = np.frombuffer(base64.b64decode(encoded, validate=True), dtype="<i4").reshape(shape)
        except (binascii.Error, ValueError) as error:
            raise RolloutError(f"experts of {what} are not {shape} numbers: {error}. {remedy}") from error
        numbers = numbers[:, np.flatnonzero(self.experts.layers)]
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < self.experts.num_experts:
            raise RolloutError(
                f"experts of {what} are numbered {numbers.min()} to {numbers.max()}, the model has "
                f"{self.experts.num_experts}, from 0. {remedy}"
            )
        bytes_each = 1 if self.experts.num_experts <= 256 else 2
        packed = numbers.astype(f"<u{bytes_each}")
        in_order = np.sort(packed, axis=-1)
        if (in_order[..., 1:] == in_order[..., :-1]).any():
            raise RolloutError(f"an expert is named twice for one token of {what}. {remedy}")
        return Packed((packed.shape[1], packed.shape[2]), bytes_each, packed.tobytes())


def open_reader(model_path: str) -> ExpertReader:
    """Reader for the model that an engine serves. Raises RolloutError where it is no mixture of experts."""
    experts = read_model_config(model_path).moe
    if experts is None:
        raise RolloutError(f"{model_path} has no experts to tell of")
    return ExpertReader(experts)


def build_request(fields: dict[str, Any], starts: Sequence[int] | None) -> Any:
    """SGLang's request for a batch, which tells experts from position `starts[i]` of each on; None: not at all.

    SGLang has one such position for a whole batch, and keeps the requests that it is taken apart into.
    """
    from sglang.srt.managers.io_struct import GenerateReqInput

    if starts is None:
        return GenerateReqInput(**fields)

    class Request(GenerateReqInput):
        def __getitem__(self, i: int) -> GenerateReqInput:
            one = super().__getitem__(i)
            one.routed_experts_start_len = starts[i]
            return one

    return Request(**fields, return_routed_experts=True)
