"""The specification of generated data, checked, and the rows of one split of it."""

from __future__ import annotations

import random
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hybridflow.data.schema import Row
from hybridflow.data.streams import derive_stream
from hybridflow.data.synth.bundle import SLACK_CHARS, check_bundle_size, generate_bundle_row
from hybridflow.data.synth.easy import check_easy_size, generate_easy_row
from hybridflow.data.synth.hard import CHARACTERS_PER_TOKEN, HardDocument, HardKind, check_hard_size, generate_hard_row

Split = Literal["train", "test"]
MARGIN = 0.01
"""Share of the long tier's band left free at both ends: a token is not the same number of characters in every row."""
_CHECKS = {"easy": check_easy_size, "hard": check_hard_size, "long": check_bundle_size}
SMALL_LENGTHS = 64
"""Lengths above the shortest that are looked at: fillers make every longer one possible."""


class SynthSpec(BaseModel):
    """A synthetic data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tier: Literal["easy", "hard", "long"]
    doc_tokens: int = Field(gt=0)
    """Document length. easy: exact, in tokens of the tiny tokenizer. hard: 4 characters count as a token. long: that of
    the whole prompt, of `chars_per_token` each."""
    min_doc_tokens: int | None = Field(default=None, gt=0)
    """Shortest document of a training row, each length up to `doc_tokens` as likely as another; test rows are all of
    `doc_tokens`. None: training rows, too."""
    chars_per_token: float = Field(default=CHARACTERS_PER_TOKEN, ge=0.5, le=20)
    """Characters that count as a token in the long tier; `measure_chars` tells them of a tokenizer."""
    num_records: int = Field(default=8, gt=0)
    """Records per document. easy: one-sentence records. hard: issuers with a report each, and agreements. long: the
    documents of a bundle beside the register, a report or agreement each."""
    num_train: int = Field(ge=0)
    num_test: int = Field(ge=0)
    kinds: tuple[HardKind, ...] = ("lookup", "two_hop", "arithmetic", "choice")
    """Question kinds of the hard tier, taken in turn. The easy tier only looks up."""
    documents: tuple[HardDocument, ...] = ("report", "contracts", "mixed")
    """Kinds of document of the hard tier, drawn for each row; mixed is left out where there is one record."""

    @model_validator(mode="after")
    def _fits(self) -> SynthSpec:
        check = _CHECKS[self.tier]
        shortest = self.min_doc_tokens or self.doc_tokens
        if shortest > self.doc_tokens:
            raise ValueError(f"min_doc_tokens={shortest} is above doc_tokens={self.doc_tokens}: lower the first")
        lengths = {self.doc_tokens, *range(shortest, min(shortest + SMALL_LENGTHS, self.doc_tokens))}
        for length in sorted(lengths):
            if problem := check(length, self.num_records):
                key = "min_doc_tokens" if length == self.min_doc_tokens else "doc_tokens"
                raise ValueError(problem.replace("doc_tokens", key))
        if self.tier == "long" and self.min_doc_tokens and self.doc_tokens < (least := _least_longest(shortest)):
            raise ValueError(f"doc_tokens={self.doc_tokens} is too near min_doc_tokens={shortest}: raise it to {least}")
        if not self.kinds:
            raise ValueError("kinds is empty: name at least one question kind")
        if self.tier == "hard" and not self.list_documents():
            raise ValueError("documents has nothing to draw: name report or contracts, or mixed with 2 records or more")
        return self

    def list_documents(self) -> list[HardDocument]:
        """The documents that this number of records allows."""
        return [layout for layout in self.documents if layout != "mixed" or self.num_records > 1]


def _least_longest(shortest: int) -> int:
    """Tokens of the longest prompt that leave a band of lengths, within its margins, above the shortest."""
    return int(shortest * (1 + 3 * MARGIN)) + SLACK_CHARS


def generate_rows(spec: SynthSpec, split: Split, seed: int) -> list[Row]:
    """All rows of one split, in order; see `generate_row`."""
    num_rows = spec.num_train if split == "train" else spec.num_test
    return [generate_row(spec, split, seed, index) for index in range(num_rows)]


def generate_row(spec: SynthSpec, split: Split, seed: int, index: int) -> Row:
    """Row `index` of a split.

    It depends on (tier, split, seed, index) and the sizes alone: the same in every process, whatever the number of
    rows, and drawn from another stream in train than in test.
    """
    stream = derive_stream("hybridflow.synth", spec.tier, split, seed, index)
    doc_tokens = spec.doc_tokens
    if spec.tier == "long":
        num_chars = _draw_chars(spec, split, stream)
        return generate_bundle_row(stream, index, split, num_chars, spec.num_records)
    if split == "train" and spec.min_doc_tokens is not None:
        doc_tokens = stream.randint(spec.min_doc_tokens, doc_tokens)
    if spec.tier == "easy":
        return generate_easy_row(stream, index, split, doc_tokens, spec.num_records)
    kind = spec.kinds[index % len(spec.kinds)]
    layout = stream.choice(spec.list_documents())
    return generate_hard_row(stream, index, split, doc_tokens, spec.num_records, kind, layout)


def plan_chars(spec: SynthSpec, split: Split, seed: int, index: int) -> int:
    """Characters of row `index` of the long tier, without making it; it has at most SLACK_CHARS fewer."""
    return _draw_chars(spec, split, derive_stream("hybridflow.synth", spec.tier, split, seed, index))


def _draw_chars(spec: SynthSpec, split: Split, stream: random.Random) -> int:
    """The length of a prompt, each within the margins of the band as likely as another."""
    is_band = split == "train" and spec.min_doc_tokens is not None
    shortest = (spec.min_doc_tokens if is_band else spec.doc_tokens) or 0
    longest_chars = int(spec.doc_tokens * spec.chars_per_token * (1 - MARGIN))
    shortest_chars = int(shortest * spec.chars_per_token * (1 + MARGIN)) + SLACK_CHARS
    return stream.randint(min(shortest_chars, longest_chars), longest_chars)
