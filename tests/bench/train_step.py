"""Tokens per CPU second of a training step, against transformers with SDPA and torch's AdamW; prints one JSON line.

    python tests/bench/train_step.py
    python tests/bench/train_step.py --mode grpo

One process, one thread, float32, the same random Qwen3 model and the same rows on both sides, every token after the
first predicted. A step is forward, loss, backward, clipping to the global gradient norm, and AdamW. Rows have equal
length, so transformers pays for no padding. Steps of the two sides alternate, and CPU time of the process is compared,
by median: other load on the machine moves both alike.

Mode "grpo" is an on-policy step of the product, `trainer.policy_update`: 4 groups of 8 rows, 512 prompt and 64 response
tokens each, against the same loss in transformers on a padded batch that keeps the logits of responses alone. It also
gives `old_logprobs_share`, the part of the step's CPU time that goes into a pass for old log-probabilities. The loss
itself, the mean advantage, is 0 on both sides: that they compute the same shows in the norm of the gradient.
`bonus_ratio` is the CPU time of the product's step with an entropy bonus to that without. `reference_share` is the part
of a step with KL in the loss that the reference's forward pass takes, exchange of weights included; `exchange_share` is
the exchange in and back alone.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from hybridflow.algorithms.objective import REF_LOGPROBS
from hybridflow.algorithms.spec import policy_spec
from hybridflow.batching.microbatch import build_units, plan_micro_batches
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.regularisation_sections import KLSection
from hybridflow.trainer.measuring import measure_rows
from hybridflow.trainer.policy_update import update_policy
from hybridflow.types import TokenColumns, TrainBatch, TrainSequence
from megatron_ext.optimizer.optimizer import OptimizerOptions
from megatron_ext.packing.micro_batch import MicroBatch, PackInput, pack_sequences
from megatron_ext.packing.sums import LossSums
from megatron_ext.parallel.layout import Layout
from megatron_ext.parallel.topology import init_distributed, shutdown_distributed
from megatron_ext.policy import MegatronPolicy
from tests.ports import free_port

LR = 1e-4
PROMPT_TOKENS, RESPONSE_TOKENS, GROUP_SIZE = 512, 64, 8
OPTIONS = OptimizerOptions(lr=LR, betas=(0.9, 0.95), weight_decay=0.01, clip_grad=1.0)

Step = Callable[[], tuple[float, float]]
"""Returns loss and norm of the gradient before clipping."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


def main() -> None:
    options = parse_arguments()
    is_grpo = options.mode == "grpo"
    for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):  # freed pages are kept, or fresh ones dominate both sides
        ctypes.CDLL(None).mallopt(parameter, 2**30)
    torch.set_num_threads(1)
    tokens_BT = torch.randint(
        0, options.vocab, (options.rows, options.length), generator=torch.Generator().manual_seed(1)
    )
    with tempfile.TemporaryDirectory() as hf_dir:
        write_model(hf_dir, options)
        policy = open_policy(hf_dir)
        rewarded: Step | None = None
        batch: TrainBatch | None = None
        if is_grpo:
            batch = make_batch(tokens_BT, options)
            rewarded = grpo_step(policy, batch, entropy_coefficient=0.001)
            ours, theirs = grpo_step(policy, batch), transformers_grpo_step(hf_dir, tokens_BT, batch)
        else:
            ours, theirs = megatron_step(policy, tokens_BT), transformers_step(hf_dir, tokens_BT)
    passes = PassTimer(policy)
    pairs = [(ours(), theirs()) for _ in range(2)]  # warm up, and see that both do the same
    loss_difference, norm_difference = (
        max(abs(mine[part] - other[part]) for mine, other in pairs) for part in range(2)
    )
    passes.seconds = 0.0
    seconds = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(options.steps)]
    rates = [tokens_BT.numel() / statistics.median(side) for side in zip(*seconds, strict=True)]
    result = {
        "ratio": round(rates[0] / rates[1], 3),
        "tokens_per_cpu_second": round(rates[0]),
        "transformers_tokens_per_cpu_second": round(rates[1]),
        "max_loss_difference": float(f"{loss_difference:.2g}"),
        "max_grad_norm_difference": float(f"{norm_difference:.2g}"),
        **({"old_logprobs_share": round(passes.seconds / sum(ours for ours, _ in seconds), 3)} if is_grpo else {}),
        **({} if rewarded is None else {"bonus_ratio": bonus_ratio(rewarded, ours, options.steps)}),
        **({} if batch is None else reference_shares(policy, batch, options.steps)),
        **vars(options),
    }
    shutdown_distributed()
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["sft", "grpo"], default="sft")
    parser.add_argument("--rows", type=int, help="4; with --mode grpo 32, in groups of 8")
    parser.add_argument("--length", type=int, help="512; with --mode grpo 576, of which 64 are the response")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--steps", type=int, help="25; with --mode grpo 5")
    options = parser.parse_args()
    defaults = {"sft": (4, 512, 25), "grpo": (32, PROMPT_TOKENS + RESPONSE_TOKENS, 5)}[options.mode]
    for name, default in zip(("rows", "length", "steps"), defaults, strict=True):
        if getattr(options, name) is None:
            setattr(options, name, default)
    return options


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


def open_policy(hf_dir: str) -> MegatronPolicy:
    layout = Layout()
    topology = init_distributed(0, 1, "127.0.0.1", free_port(), layout, seed=0)
    return MegatronPolicy(hf_dir, layout, topology, dtype=torch.float32, optimizer=OPTIONS)


def megatron_step(policy: MegatronPolicy, tokens_BT: Tensor) -> Step:
    rows = [PackInput(row, 1, [1] * (len(row) - 1)) for row in tokens_BT.tolist()]

    def loss(logprobs_N: Tensor, entropy_N: Tensor | None, micro_batch: MicroBatch) -> LossSums:
        return LossSums(loss=-logprobs_N.sum(), num_tokens=logprobs_N.numel(), metrics={})

    micro_batches = [pack_sequences(rows)]

    def step() -> tuple[float, float]:
        result = policy.train_step(micro_batches, loss, lr=LR, temperature=1.0)
        return result.loss, result.grad_norm

    return step


def make_batch(tokens_BT: Tensor, options: argparse.Namespace) -> TrainBatch:
    """Advantages alternate in sign, so that each group of 8 has a mean of 0."""
    response = options.length - PROMPT_TOKENS
    sequences = [
        TrainSequence(
            sequence_id=f"s{number}",
            prompt_token_ids=row[:PROMPT_TOKENS],
            response=TokenColumns(ids=row[PROMPT_TOKENS:], rollout_logprobs=[-1.0] * response),
            loss_mask=[1] * response,
            advantage=1.0 if number % 2 else -1.0,
        )
        for number, row in enumerate(tokens_BT.tolist())
    ]
    plan = plan_micro_batches(
        build_units(sequences), num_dp_ranks=1, max_tokens_per_micro_batch=GROUP_SIZE * options.length
    )
    return TrainBatch(sequences=sequences, plan=[plan], temperature=1.0)


def grpo_step(policy: MegatronPolicy, batch: TrainBatch, entropy_coefficient: float = 0.0) -> Step:
    objective = policy_spec(AlgorithmSection(entropy_coefficient=entropy_coefficient))

    def step() -> tuple[float, float]:
        (report,) = update_policy(policy, batch, LR, objective=objective)
        return report.loss, report.grad_norm

    return step


def bonus_ratio(rewarded: Step, without: Step, steps: int) -> float:
    """CPU time of steps with an entropy bonus to that of steps without, in turns."""
    rewarded()
    seconds = [(cpu_seconds(rewarded), cpu_seconds(without)) for _ in range(steps)]
    first, second = (statistics.median(side) for side in zip(*seconds, strict=True))
    return round(first / second, 3)


def reference_shares(policy: MegatronPolicy, batch: TrainBatch, steps: int) -> dict[str, float]:
    """Parts of the CPU time of steps with KL in the loss, after one that is not counted."""
    kl = KLSection(place="loss", coefficient=0.04, estimator="unbiased", reference="start")
    objective = policy_spec(AlgorithmSection(kl=kl))
    policy.keep_reference()
    exchanges, passes, updates = [], [], []
    for _ in range(steps + 1):
        marks = [time.process_time()]
        with policy.as_reference():
            pass
        marks.append(time.process_time())
        measured = measure_rows(policy, batch, [REF_LOGPROBS])
        rows = [msgspec.structs.replace(row, measured=measured[at]) for at, row in enumerate(batch.sequences)]
        marks.append(time.process_time())
        update_policy(policy, msgspec.structs.replace(batch, sequences=rows), LR, objective=objective)
        marks.append(time.process_time())
        for part, (began, ended) in zip((exchanges, passes, updates), itertools.pairwise(marks), strict=True):
            part.append(ended - began)
    exchange, one_pass, update = (statistics.median(part[1:]) for part in (exchanges, passes, updates))
    whole = one_pass + update
    return {"reference_share": round(one_pass / whole, 3), "exchange_share": round(exchange / whole, 4)}


def transformers_step(hf_dir: str, tokens_BT: Tensor) -> Step:
    return adamw_step(hf_dir, lambda model: model(input_ids=tokens_BT, labels=tokens_BT).loss)


def transformers_grpo_step(hf_dir: str, tokens_BT: Tensor, batch: TrainBatch) -> Step:
    """On-policy: the ratio is 1 and old log-probabilities are the detached ones. A group of 8 rows at a time."""
    advantages_B = torch.tensor([sequence.advantage for sequence in batch.sequences])
    response = len(batch.sequences[0].response_token_ids)

    def loss_of(model: PreTrainedModel) -> Tensor:
        total = torch.zeros(())
        for rows_BT, advantages_b in zip(tokens_BT.split(GROUP_SIZE), advantages_B.split(GROUP_SIZE), strict=True):
            logits_BTV = model(input_ids=rows_BT, logits_to_keep=response + 1).logits[:, :-1]
            logprobs_BTV = logits_BTV.log_softmax(-1)
            logprobs_BT = logprobs_BTV.gather(2, rows_BT[:, -response:, None])[..., 0]
            ratio_BT = (logprobs_BT - logprobs_BT.detach()).exp()
            clipped_BT = ratio_BT.clamp(0.8, 1.28)
            loss = -torch.minimum(ratio_BT * advantages_b[:, None], clipped_BT * advantages_b[:, None]).sum()
            loss = loss / (len(batch.sequences) * response)
            loss.backward()
            total += loss.detach()
        return total

    return adamw_step(hf_dir, loss_of)


def adamw_step(hf_dir: str, loss_of: Callable[[PreTrainedModel], Tensor]) -> Step:
    """`loss_of` gives the loss, with its graph or after backward."""
    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32, attn_implementation="sdpa").train()
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": OPTIONS.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=OPTIONS.betas, eps=OPTIONS.eps)

    def step() -> tuple[float, float]:
        loss = loss_of(model)
        if loss.requires_grad:
            loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIONS.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), grad_norm.item()

    return step


class PassTimer:
    """CPU seconds that a policy spends in passes for log-probabilities alone."""

    def __init__(self, policy: MegatronPolicy) -> None:
        self.seconds = 0.0
        self._logprobs = policy.logprobs
        policy.logprobs = self  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        result = self._logprobs(*args, **kwargs)
        self.seconds += time.process_time() - started
        return result


def cpu_seconds(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


if __name__ == "__main__":
    main()
