"""Sizes of the checks, on a GPU and in a dry run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Qwen3 model."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def num_parameters(self) -> int:
        """With a tied embedding; norms, which are small, are left out."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn) + self.vocab * self.hidden

    def flops_per_token(self, tokens: int) -> float:
        """Operations of forward and backward in a causal row: 6 per parameter; 6 per layer, width and visible token.

        As in the peer's benchmark: its 26.8% at 10.15k tokens/s and 989 TFLOP/s are 26.1 GFLOP per token, as here.
        """
        return 6.0 * self.num_parameters + 6.0 * self.layers * self.heads * self.head_dim * tokens


@dataclass(frozen=True)
class Sizes:
    """Sizes of one kind of run."""

    is_dry: bool
    small: Shape
    """Compared with transformers and with a CPU."""
    row_lengths: tuple[int, ...]
    attention_lengths: tuple[int, ...]
    """Rows of one pack, compared with plain attention."""
    attention_timed: int
    """Length of one row that is timed."""
    head_tokens: int
    head_vocab: int
    head_hidden: int
    shard_bytes: int
    num_shards: int
    step: Shape
    step_tokens: int
    step_repeats: int


GPU = Sizes(
    is_dry=False,
    small=Shape(layers=4, hidden=1024, ffn=3072, heads=16, kv_heads=8, head_dim=128, vocab=32_768),
    row_lengths=(700, 300, 1_500),
    attention_lengths=(1_000, 37, 2_500),
    attention_timed=65_536,
    head_tokens=16_384,
    head_vocab=151_936,
    head_hidden=1_024,
    shard_bytes=2**30,
    num_shards=4,
    step=Shape(layers=28, hidden=1_024, ffn=3_072, heads=16, kv_heads=8, head_dim=128, vocab=151_936),
    step_tokens=65_536,
    step_repeats=3,
)
DRY = Sizes(
    is_dry=True,
    small=Shape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=512),
    row_lengths=(11, 5, 30),
    attention_lengths=(20, 3, 41),
    attention_timed=64,
    head_tokens=96,
    head_vocab=640,
    head_hidden=32,
    shard_bytes=2**16,
    num_shards=3,
    step=Shape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, head_dim=16, vocab=512),
    step_tokens=128,
    step_repeats=2,
)
