"""How often a trainer's routers choose other experts than the engine did, before and after an update; one JSON line.

    python tests/bench/routing.py
    python tests/bench/routing.py --dtype bfloat16
    python tests/bench/routing.py --without-engine

A random mixture of experts (2 layers, 3 of 8 experts) is served by SGLang, which draws groups of completions and tells
its experts. A trainer of one rank with the same weights then reads them without replay, takes one GRPO step with
rewards of +1 and -1 in turn, and reads them again. Shares are over prompts and completions; a token differs where any
of its layers does. `logprob_gap` is the mean |trainer - engine| of completions before the step, and
`logprob_gap_replayed` the same with the engine's experts. Without an engine its choice is that of the trainer before
the step, which in float32 it equals (tests/stack_cpu/test_exact_shards.py), and completions are drawn uniformly.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import msgspec
import torch
from torch import Tensor

from hybridflow.algorithms.spec import policy_spec
from hybridflow.batching.microbatch import build_units, plan_micro_batches
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.loop.batch import build_train_sequences
from hybridflow.policy.init import write_policy
from hybridflow.types import Completion, Group, Lease, Packed, SamplingParams, TokenColumns, TrainBatch, TrainSequence
from megatron_ext.parallel.layout import Layout
from tests.builders import build_prompt, build_request, build_scored
from tests.ports import free_port
from tests.stack_cpu.exact_processes import start_engine
from tests.stack_cpu.moe_model import write_moe

if TYPE_CHECKING:
    from megatron_ext.policy import MegatronPolicy

ROOT = Path(__file__).parents[2]
TOKENS_PER_MICRO_BATCH = 2048


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        dense, moe = Path(folder, "dense"), Path(folder, "moe")
        write_policy(ROOT / "configs/models/tiny", dense, seed=0)
        write_moe(dense, moe)
        rows = uniform_rows(arguments) if arguments.without_engine else draw_rows(moe, arguments)
        # SGLang's processes import this file too, and Megatron with their own libraries: so not at its top.
        from megatron_ext.parallel.topology import init_distributed, shutdown_distributed

        topology = init_distributed(0, 1, "127.0.0.1", free_port(), Layout(), seed=0)
        try:
            print(json.dumps(measure(moe, rows, topology, arguments)))
        finally:
            shutdown_distributed()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--without-engine", action="store_true")
    parser.add_argument("--lr", type=float, default=1e-3)
    return parser.parse_args()


def uniform_rows(arguments: argparse.Namespace) -> list[TrainSequence]:
    """Rows that no engine drew."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(arguments.groups):
        prompt = torch.randint(5, 1000, (arguments.prompt_tokens,), generator=generator).tolist()
        for index in range(arguments.group_size):
            ids = torch.randint(5, 1000, (arguments.new_tokens,), generator=generator).tolist()
            response = TokenColumns(ids=ids, rollout_logprobs=[-1.0] * len(ids))
            rows.append(
                TrainSequence(
                    sequence_id=f"g{number:03d}-c{index:02d}",
                    group_id=f"g{number:03d}",
                    prompt_token_ids=prompt,
                    response=response,
                    loss_mask=[1] * len(ids),
                    advantage=(-1.0) ** index,
                )
            )
    return rows


def draw_rows(model: Path, arguments: argparse.Namespace) -> list[TrainSequence]:
    """Rows with the engine's experts."""
    engine = start_engine(model, 1, tells_experts=True, dtype=arguments.dtype, initial_version=0)
    generator = torch.Generator().manual_seed(0)
    requests = []
    for number in range(arguments.groups):
        tokens = torch.randint(5, 1000, (arguments.prompt_tokens,), generator=generator).tolist()
        requests.append(build_request(build_prompt(token_ids=tokens), arguments.group_size, group_id=f"g{number:03d}"))
    sampling = SamplingParams(
        temperature=1.0, max_new_tokens=arguments.new_tokens, returns_experts=True, ignores_end=True
    )
    leases = [Lease(request=one, attempt=1, indices=list(range(arguments.group_size))) for one in requests]
    try:
        completions: list[Completion] = engine.call("draw", leases, sampling)
    finally:
        engine.close()
    rows = []
    for request in requests:
        own = sorted((c for c in completions if c.group_id == request.group_id), key=lambda one: one.index)
        group = Group(group_id=request.group_id, prompt=request.prompt, members=[build_scored(one) for one in own])
        rows += build_train_sequences([group], {request.group_id: [(-1.0) ** one.index for one in own]})
    return rows


def measure(model: Path, rows: list[TrainSequence], topology: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    from hybridflow.trainer.policy_update import update_policy
    from megatron_ext.optimizer.optimizer import OptimizerOptions
    from megatron_ext.policy import MegatronPolicy

    options = OptimizerOptions(lr=arguments.lr, betas=(0.9, 0.95), weight_decay=0.0, clip_grad=1.0)
    plan = [plan_micro_batches(build_units(rows), num_dp_ranks=1, max_tokens_per_micro_batch=TOKENS_PER_MICRO_BATCH)]
    free = [
        msgspec.structs.replace(
            row, response=msgspec.structs.replace(row.response, experts=Packed()), prompt_experts=Packed()
        )
        for row in rows
    ]
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[arguments.dtype]

    def open_policy(replays: bool) -> MegatronPolicy:
        return MegatronPolicy(str(model), Layout(), topology, dtype=dtype, optimizer=options, routing_replay=replays)

    given, bare = (TrainBatch(sequences=some, plan=plan, temperature=1.0) for some in (rows, free))
    order = [number for micro_batch in plan[0][0] for number in micro_batch]
    engine_TLK = [] if arguments.without_engine else [told_experts(rows[number]) for number in order]
    engine_logprobs = torch.cat([torch.tensor(rows[number].response.rollout_logprobs) for number in order])

    policy = open_policy(False)
    before, logprobs = read(policy, bare)
    if arguments.without_engine:
        per_token = policy.hf_config.moe.experts_per_token if policy.hf_config.moe else 0
        engine_TLK = [chosen_TLE[:-1].float().topk(per_token, dim=2).indices for chosen_TLE in before]
    update_policy(policy, bare, arguments.lr, objective=policy_spec(AlgorithmSection()))
    after, _ = read(policy, bare)
    shares = {f"before_{name}": share for name, share in compare(before, engine_TLK).items()}
    shares |= {f"after_{name}": share for name, share in compare(after, engine_TLK).items()}
    found = {"dtype": arguments.dtype, "tokens": sum(map(len, engine_TLK)), "lr": arguments.lr, **shares}
    if arguments.without_engine:
        return found
    _, replayed = read(open_policy(True), given)
    return {
        **found,
        "logprob_gap": float(f"{(logprobs - engine_logprobs).abs().mean():.3g}"),
        "logprob_gap_replayed": float(f"{(replayed - engine_logprobs).abs().mean():.3g}"),
    }


def told_experts(row: TrainSequence) -> Tensor:
    """int64 [T - 1, L, K]."""
    data = row.prompt_experts.data + row.response.experts.data
    return torch.tensor(list(data)).view(-1, *row.response.experts.shape)


def read(policy: MegatronPolicy, batch: TrainBatch) -> tuple[list[Tensor], Tensor]:
    """Choices of routers, bool [T, L, E] per row, and log-probabilities of all counted tokens, in plan order."""
    from hybridflow.trainer.batch import pack_rank

    maps: list[Tensor] = []
    layers = policy.model.decoder.layers
    hooks = [layer.mlp.router.register_forward_hook(lambda _, __, output: maps.append(output[1])) for layer in layers]
    outputs = policy.logprobs(pack_rank(batch, 0), temperature=1.0)
    for hook in hooks:
        hook.remove()
    rows: list[Tensor] = []
    for place, numbers in enumerate(batch.plan[0][0]):
        whole_TLE = torch.stack(maps[place * len(layers) : (place + 1) * len(layers)], dim=1)
        rows += whole_TLE.split([batch.sequences[number].num_tokens for number in numbers])
    assert outputs is not None
    return rows, torch.cat([output.logprobs_N for output in outputs])


def compare(chosen: list[Tensor], told: list[Tensor]) -> dict[str, float]:
    """Shares of choices and of tokens that are not those of the engine."""
    differs_TL = torch.cat(
        [~chosen_TLE[:-1].gather(2, told_TLK).all(dim=2) for chosen_TLE, told_TLK in zip(chosen, told, strict=True)]
    )
    return {
        "choices_differing": round(differs_TL.float().mean().item(), 5),
        "tokens_differing": round(differs_TL.any(dim=1).float().mean().item(), 5),
    }


if __name__ == "__main__":
    main()
