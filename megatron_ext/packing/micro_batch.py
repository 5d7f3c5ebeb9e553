"""Packs token sequences into one row without padding between them.

Shape legend: T packed tokens, S segments, N predicted positions. No Megatron here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_ext.packing.routed_experts import RoutedExperts, join_routed
from megatron_ext.packing.rows import Rows
from megatron_ext.packing.sampling_mask import RaggedInput


@dataclass(frozen=True)
class PackInput:
    """One sequence to pack, with the tokens the loss is about.

    `predict_mask[i]` says whether token `predict_from + i` is predicted; every list of `loss_inputs` has one value for
    each token whose mask is 1, in order.
    """

    token_ids: list[int]
    predict_from: int
    """Index of the first token that may be predicted; at least 1, for nothing precedes token 0."""
    predict_mask: list[int]
    loss_inputs: dict[str, list[float]] = field(default_factory=dict)
    ragged_inputs: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    """By name, for each predicted token the number of its integers, and all of these. What another sequence has and
    this one has not is none for each of its tokens."""
    routed_experts: RoutedExperts | None = None
    """Choice for its tokens that the model replays; None: its routers decide."""
    row_id: int = 0
    group_id: int = 0
    """Numbers by which a loss tells rows, and groups of rows, apart; see `Rows`."""


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, and what the loss wants to know at the predicted positions.

    Rows of `predict_index_N` are in the order of the sequences given to `pack_sequences`.
    """

    tokens_T: Tensor
    """int64 [T]."""
    position_ids_T: Tensor
    """int64 [T], each token's position in its own sequence."""
    cu_seqlens: Tensor
    """int32 [S + 1] on the CPU, where each segment starts; the last is T."""
    max_seqlen: int
    predict_index_N: Tensor
    """int64 [N], pack positions whose output predicts the next token."""
    targets_N: Tensor
    """int64 [N], the tokens predicted there."""
    rows: Rows
    """The row of each of the N positions, for losses of whole rows."""
    loss_inputs: dict[str, Tensor] = field(default_factory=dict)
    """float32 (float64 for such a policy) or bool [N] each; only the loss callback knows what they mean."""
    ragged_inputs: dict[str, RaggedInput] = field(default_factory=dict)
    """By name, of the N positions: what the model (`sampling_mask`) or the loss takes of them."""
    routed_experts: RoutedExperts | None = None
    """Choice for the T tokens that the model replays; it stays on the CPU, each layer takes its own."""

    @property
    def num_tokens(self) -> int:
        return self.tokens_T.numel()

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`; `cu_seqlens` stays on the CPU, where attention is planned."""
        if self.tokens_T.device == device:
            return self
        return dataclasses.replace(
            self,
            tokens_T=self.tokens_T.to(device, non_blocking=True),
            position_ids_T=self.position_ids_T.to(device, non_blocking=True),
            predict_index_N=self.predict_index_N.to(device, non_blocking=True),
            targets_N=self.targets_N.to(device, non_blocking=True),
            rows=self.rows.to(device),
            loss_inputs={name: value.to(device, non_blocking=True) for name, value in self.loss_inputs.items()},
            ragged_inputs={name: value.to(device) for name, value in self.ragged_inputs.items()},
        )


def pack_sequences(
    sequences: Sequence[PackInput], pad_to_multiple: int = 1, loss_dtype: torch.dtype = torch.float32
) -> MicroBatch:
    """Packs `sequences` in order, then a segment of padding that reaches a multiple of `pad_to_multiple` tokens.

    Loss inputs become tensors of `loss_dtype`. The padding predicts nothing and no sequence attends to it. Raises
    ValueError for no sequences, an empty one, a `predict_from` or mask that leaves the sequence, or loss inputs of the
    wrong length or with differing names.
    """
    if not sequences:
        raise ValueError("no sequences to pack: a rank without rows packs one sequence whose predict_mask is all 0")
    names = list(sequences[0].loss_inputs)
    lengths: list[int] = []
    tokens: list[int] = []
    routed = join_routed([one.routed_experts for one in sequences], [len(one.token_ids) for one in sequences])
    predict_index: list[int] = []
    counts: list[int] = []
    values: dict[str, list[float]] = {name: [] for name in names}
    for number, sequence in enumerate(sequences):
        predicted = _predicted_tokens(sequence, number, names)
        start = len(tokens)
        predict_index.extend(start + token - 1 for token in predicted)
        counts.append(len(predicted))
        for name in names:
            values[name].extend(sequence.loss_inputs[name])
        tokens.extend(sequence.token_ids)
        lengths.append(len(sequence.token_ids))

    padding = -len(tokens) % pad_to_multiple
    if padding:
        tokens.extend([0] * padding)
        lengths.append(padding)
        routed = routed and routed.pad(padding)
    tokens_T = torch.tensor(tokens, dtype=torch.int64)
    predict_index_N = torch.tensor(predict_index, dtype=torch.int64)
    return MicroBatch(
        tokens_T=tokens_T,
        position_ids_T=torch.cat([torch.arange(length) for length in lengths]),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        max_seqlen=max(lengths),
        predict_index_N=predict_index_N,
        targets_N=tokens_T[predict_index_N + 1],
        rows=Rows.of(counts, [one.row_id for one in sequences], [one.group_id for one in sequences]),
        loss_inputs={name: torch.tensor(values[name], dtype=loss_dtype) for name in names},
        ragged_inputs=_join_ragged(sequences),
        routed_experts=routed,
    )


def _join_ragged(sequences: Sequence[PackInput]) -> dict[str, RaggedInput]:
    """The ragged inputs of any of the sequences, joined over all of them."""
    joined: dict[str, RaggedInput] = {}
    for name in sorted({name for sequence in sequences for name in sequence.ragged_inputs}):
        all_lengths: list[int] = []
        all_values: list[int] = []
        for number, sequence in enumerate(sequences):
            num_predicted = sum(sequence.predict_mask)
            lengths, values = sequence.ragged_inputs.get(name, ([0] * num_predicted, []))
            if len(lengths) != num_predicted or sum(lengths) != len(values):
                raise ValueError(
                    f"sequence {number}: {name} has {len(lengths)} lengths for {num_predicted} predicted tokens, and "
                    f"{len(values)} values where the lengths add up to {sum(lengths)}"
                )
            all_lengths += lengths
            all_values += values
        joined[name] = RaggedInput.of(all_lengths, all_values)
    return joined


def _predicted_tokens(sequence: PackInput, number: int, names: list[str]) -> list[int]:
    """Indices within the sequence of the tokens to predict, after checking that everything lines up."""
    length = len(sequence.token_ids)
    if length == 0:
        raise ValueError(f"sequence {number} has no tokens")
    if sequence.predict_from < 1:
        raise ValueError(f"sequence {number}: predict_from = {sequence.predict_from}, must be at least 1")
    if sequence.predict_from + len(sequence.predict_mask) > length:
        raise ValueError(
            f"sequence {number}: predict_mask has {len(sequence.predict_mask)} entries from token "
            f"{sequence.predict_from} on, but there are {length} tokens"
        )
    predicted = [sequence.predict_from + i for i, mask in enumerate(sequence.predict_mask) if mask]
    if set(sequence.loss_inputs) != set(names):
        raise ValueError(
            f"sequence {number}: loss_inputs are {sorted(sequence.loss_inputs)}, of the first {sorted(names)}"
        )
    for name, value in sequence.loss_inputs.items():
        if len(value) != len(predicted):
            raise ValueError(
                f"sequence {number}: loss_inputs[{name!r}] has {len(value)} values "
                f"for {len(predicted)} predicted tokens"
            )
    return predicted
