"""Tokens per CPU second of a training step, against transformers with SDPA and torch's AdamW; prints one JSON line.

    python tests/bench/train_step.py

One process, one thread, float32, the same random Qwen3 model and the same rows on both sides, every token after the
first predicted. A step is forward, loss, backward, clipping to the global gradient norm, and AdamW. Rows have equal
length, so transformers pays for no padding. Steps of the two sides alternate, and CPU time of the process is compared,
by median: other load on the machine moves both alike.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from megatron_ext.layout import Layout
from megatron_ext.optimizer import OptimizerOptions
from megatron_ext.packing import MicroBatch, PackInput, pack_sequences
from megatron_ext.policy import MegatronPolicy
from megatron_ext.sums import LossSums
from megatron_ext.topology import init_distributed, shutdown_distributed
from tests.dist_cpu.launch import free_port

LR = 1e-4
OPTIONS = OptimizerOptions(lr=LR, betas=(0.9, 0.95), weight_decay=0.01, clip_grad=1.0)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of mallopt(3)."""


def main() -> None:
    options = parse_arguments()
    for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):  # freed pages are kept, or fresh ones dominate both sides
        ctypes.CDLL(None).mallopt(parameter, 2**30)
    torch.set_num_threads(1)
    tokens_BT = torch.randint(
        0, options.vocab, (options.rows, options.length), generator=torch.Generator().manual_seed(1)
    )
    with tempfile.TemporaryDirectory() as hf_dir:
        write_model(hf_dir, options)
        ours = megatron_step(hf_dir, tokens_BT)
        theirs = transformers_step(hf_dir, tokens_BT)
    losses = [(ours(), theirs()) for _ in range(2)]  # warm up, and see that both do the same
    difference = max(abs(a - b) for a, b in losses)
    seconds = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(options.steps)]
    rates = [tokens_BT.numel() / statistics.median(side) for side in zip(*seconds, strict=True)]
    result = {
        "ratio": round(rates[0] / rates[1], 3),
        "tokens_per_cpu_second": round(rates[0]),
        "transformers_tokens_per_cpu_second": round(rates[1]),
        "max_loss_difference": float(f"{difference:.2g}"),
        **vars(options),
    }
    shutdown_distributed()
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=25)
    return parser.parse_args()


def write_model(hf_dir: str, options: argparse.Namespace) -> None:
    config = Qwen3Config(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=options.hidden // 4,
        max_position_embeddings=options.length,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(hf_dir)


def megatron_step(hf_dir: str, tokens_BT: Tensor) -> Callable[[], float]:
    layout = Layout()
    topology = init_distributed(0, 1, "127.0.0.1", free_port(), layout, seed=0)
    policy = MegatronPolicy(hf_dir, layout, topology, dtype=torch.float32, optimizer=OPTIONS)
    rows = [PackInput(row, 1, [1] * (len(row) - 1)) for row in tokens_BT.tolist()]

    def loss(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
        return LossSums(loss=-logprobs_N.sum(), num_tokens=logprobs_N.numel(), metrics={})

    micro_batches = [pack_sequences(rows)]
    return lambda: policy.train_step(micro_batches, loss, lr=LR, temperature=1.0).loss


def transformers_step(hf_dir: str, tokens_BT: Tensor) -> Callable[[], float]:
    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32, attn_implementation="sdpa").train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": OPTIONS.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=OPTIONS.betas, eps=OPTIONS.eps)

    def step() -> float:
        loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIONS.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def cpu_seconds(step: Callable[[], float]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


if __name__ == "__main__":
    main()
