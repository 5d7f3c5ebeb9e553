"""Peak memory of packed attention over two context parallel ranks, by number of tokens; prints one JSON line.

    python tests/bench/attention_memory.py --tokens 4096,8192,16384

Forward and backward of one attention layer as training runs it: float32, grouped queries, one row of half the tokens
and shorter ones behind it. Each number of tokens and each exchange has fresh processes. A peak is the most resident
memory of rank 0 above what holds queries, keys, values and the gradient of the output. Linear growth doubles it at
twice the tokens; a mask or scores of T x T would quadruple it.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore"  # in its processes upstream misses Transformer Engine and Apex, at length
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from megatron_ext.attention.context_split import cut_micro_batch
from megatron_ext.attention.packed import A2A, SegmentAttention, build_packed_segments
from megatron_ext.packing.micro_batch import PackInput, pack_sequences
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import Topology
from tests.bench.logprob_memory import MIB, read_peak, reset_peak
from tests.dist_cpu.launch import run_ranks

from megatron.core.transformer.enums import AttnMaskType  # isort: skip
from megatron.core.transformer.transformer_config import TransformerConfig  # isort: skip

HEADS, KV_HEADS, HEAD_DIM = 16, 4, 64
EXCHANGES = {"all_gather": "all_gather", "all_to_all": A2A}
WARM_UP_TOKENS = 256
M_MMAP_THRESHOLD = -3
"""Parameters of mallopt(3)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="4096,8192,16384", help="of all ranks together, comma-separated")
    counts = [int(count) for count in parser.parse_args().tokens.split(",")]
    result: dict[str, object] = {"tokens": counts, "cp": 2}
    largest = 0.0
    for name in EXCHANGES:
        peaks = [run_ranks(Layout(cp=2), measure, name, count)[0] for count in counts]
        growth = [later / earlier for earlier, later in itertools.pairwise(peaks)]
        largest = max([largest, *growth])
        result[f"{name}_peak_mib"] = [round(peak, 1) for peak in peaks]
        result[f"{name}_growth"] = [round(factor, 3) for factor in growth]
    print(json.dumps({**result, "largest_growth": round(largest, 3)}))


def measure(topology: Topology, layout: Layout, exchange: str, num_tokens: int) -> float:
    """MiB of peak memory of one forward and backward on this rank."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)  # every tensor has pages of its own, given back at once
    config = TransformerConfig(
        num_layers=1, hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, cp_comm_type=EXCHANGES[exchange]
    )
    attention = SegmentAttention(config, 1, AttnMaskType.causal, "self", softmax_scale=HEAD_DIM**-0.5)
    attend(attention, topology, WARM_UP_TOKENS)  # libraries and process groups take their own memory first
    return attend(attention, topology, num_tokens) / MIB


def attend(attention: SegmentAttention, topology: Topology, num_tokens: int) -> int:
    lengths = [num_tokens // 2, num_tokens // 4, num_tokens // 8, num_tokens - 7 * (num_tokens // 8)]
    rows = [PackInput([1] * length, 1, []) for length in lengths]
    cut = cut_micro_batch(pack_sequences(rows), topology.cp_size, topology.cp_rank)
    shapes = [(cut.micro_batch.num_tokens, 1, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (torch.randn(shape, requires_grad=True) for shape in shapes)
    grad = torch.randn(shapes[0]).flatten(2)
    resident = reset_peak(topology.device)
    segments = build_packed_segments(cut, topology.cp_group, topology.device)
    attention(query, key, value, None, packed_seq_params=segments).backward(grad)
    return read_peak(topology.device) - resident


if __name__ == "__main__":
    main()
