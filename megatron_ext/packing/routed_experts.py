"""Routed experts: the experts that something else, such as the engine that decoded, chose for tokens of a pack.

A mixture of experts computes each token with the few experts that its router likes best. Two programs that round
differently choose differently where two experts are nearly equal, and then compute another model. So the choice travels
with the tokens. No Megatron here.

Shape legend: T packed tokens, L layers with experts of the whole model, first to last, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {1: torch.uint8, 2: torch.int16}
"""By bytes of an expert's number: 2 where there are more than 256 experts."""


@dataclass(frozen=True)
class RoutedExperts:
    """Experts of some tokens; of the others the router decides."""

    experts_TLK: Tensor
    """uint8 or int16, on the CPU; those of one token at one layer differ."""
    known_T: Tensor
    """bool, on the CPU: whether there is a choice for the token."""

    @classmethod
    def of_bytes(cls, data: bytes, shape: tuple[int, int], bytes_each: int, num_tokens: int) -> RoutedExperts:
        """From little-endian numbers of the first tokens of a row of `num_tokens`; the rest are unknown.

        Args:
            data: [tokens, L, K], row after row.
            shape: (L, K).
            bytes_each: 1 or 2.
            num_tokens: Tokens of the row.

        Raises:
            ValueError: the bytes are no whole tokens, or more than there are.
        """
        num_layers, per_token = shape
        num_known, rest = divmod(len(data), max(1, num_layers * per_token * bytes_each))
        if bytes_each not in DTYPES or rest or num_known > num_tokens:
            raise ValueError(
                f"{len(data)} bytes of routed experts are not those of at most {num_tokens} tokens with {num_layers} "
                f"layers x {per_token} experts x {bytes_each} bytes"
            )
        experts_TLK = torch.zeros((num_tokens, num_layers, per_token), dtype=DTYPES[bytes_each])
        if num_known:
            known = torch.frombuffer(bytearray(data), dtype=DTYPES[bytes_each])
            experts_TLK[:num_known] = known.view(num_known, num_layers, per_token)
        return cls(experts_TLK, torch.arange(num_tokens) < num_known)

    def take(self, source_T: Tensor, is_real_T: Tensor) -> RoutedExperts:
        """The tokens at some places; nothing is known of those that are not real."""
        return RoutedExperts(self.experts_TLK[source_T], self.known_T[source_T] & is_real_T)

    def pad(self, num_tokens: int) -> RoutedExperts:
        """With so many more tokens at the end, of which nothing is known."""
        experts_TLK, known_T = self.experts_TLK, self.known_T
        return RoutedExperts(
            torch.cat([experts_TLK, experts_TLK.new_zeros((num_tokens, *experts_TLK.shape[1:]))]),
            torch.cat([known_T, known_T.new_zeros(num_tokens)]),
        )


def join_routed(rows: Sequence[RoutedExperts | None], lengths: Sequence[int]) -> RoutedExperts | None:
    """The rows one after another; None where no row has any. ValueError where they are of different shapes."""
    known = [row for row in rows if row is not None]
    if not known:
        return None
    shapes = {(*row.experts_TLK.shape[1:], row.experts_TLK.dtype) for row in known}
    if len(shapes) > 1:
        raise ValueError(f"rows of one pack have routed experts of different shapes: {sorted(map(str, shapes))}")
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if row is not None and row.known_T.numel() != length:
            raise ValueError(f"sequence {number}: routed experts of {row.known_T.numel()} tokens, there are {length}")
    nothing = known[0].pad(0)
    nothing = RoutedExperts(nothing.experts_TLK[:0], nothing.known_T[:0])
    parts = [nothing.pad(length) if row is None else row for row, length in zip(rows, lengths, strict=True)]
    return RoutedExperts(torch.cat([part.experts_TLK for part in parts]), torch.cat([part.known_T for part in parts]))


@dataclass(frozen=True)
class Disagreement:
    """How often the model's own routers would have chosen another set of experts, over the tokens with known ones."""

    num_choices: int
    """Tokens x layers with experts."""
    num_differing_choices: int
    num_tokens: int
    num_differing_tokens: int
    """Tokens that differ at any layer."""
