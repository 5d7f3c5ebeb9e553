"""HF transformers, Megatron TP=2 and SGLang TP=1 are the same policy, before and after an update by exact shards.

One system (Ray, two train workers, one engine) serves all tests: the initial weights are published as version 0, one
policy gradient step changes them, and the result is published as version 1. The reference is HF transformers on the
exported weights.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.data.dataset import PromptDataset
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from hybridflow.errors import RolloutError, WeightSyncError
from hybridflow.loop.batch import plan_batch
from hybridflow.loop.collect import collect_step
from hybridflow.loop.step import build_requests, plan_all
from hybridflow.observability.reporter import Notes
from hybridflow.runtime.colocation import Colocation
from hybridflow.runtime.system import System
from hybridflow.types import Collected, Completion, Prompt, SamplingParams, TokenColumns, TrainSequence
from hybridflow.weights.manifest import TensorEntry
from hybridflow.weights.reshard.buffers import map_buffer
from hybridflow.weights.reshard.shard_bucket import ShardRound
from tests.builders import build_prompt
from tests.stack_cpu.command import ROOT, settings

pytestmark = [pytest.mark.stack_cpu, pytest.mark.timeout(300)]

NUM_PROMPTS = 6
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)
SAMPLED = SamplingParams(temperature=0.7, max_new_tokens=8)


@dataclass
class Stack:
    """A running system and what it made."""

    system: System
    prompts: list[Prompt]
    config: Config
    exported: dict[int, Path]
    """HF directory of each published version."""
    greedy: dict[int, Collected]
    sampled: Collected
    """4 completions per prompt at temperature 0.7 from version 0."""


@pytest.fixture(scope="module")
def stack(warm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("parity")
    changes = {"rollout__temperature": 0.7, "rollout__weight_transport": "exact", "reward__max_pending_mib": 0.05}
    overrides = settings(warm_model, folder, **changes)
    config = load_config([ROOT / "configs/quickstart.toml"], overrides, Config)
    spec = SynthSpec(tier="easy", doc_tokens=64, num_records=8, num_train=NUM_PROMPTS, num_test=1)
    tokenizer = AutoTokenizer.from_pretrained(warm_model)
    prompts = PromptDataset("parity", generate_rows(spec, "train", 5), tokenizer, 1000).prompts
    with System(config, warm_model, folder / "logs", Notes()) as system:
        with pytest.raises(RolloutError, match="no confirmed weights version"):
            generate(system, "early", prompts, 1, GREEDY)
        publish(system, 0, folder)
        greedy = {0: generate(system, "g0", prompts, 1, GREEDY)}
        sampled = generate(system, "s0", prompts, 4, SAMPLED)
        rows = [to_row(prompts, c, advantage=1.0 if c.index % 2 else -1.0) for c in completions(sampled)]
        (report,) = system.trainer.update(
            plan_batch(rows, [len(rows)], config.train, temperature=SAMPLED.temperature), learning_rate=3e-3
        )
        assert report.num_skipped == 0 and report.grad_norm > 0
        publish(system, 1, folder)
        greedy[1] = generate(system, "g1", prompts, 1, GREEDY)
        yield Stack(system, prompts, config, {0: folder / "v0", 1: folder / "v1"}, greedy, sampled)


def publish(system: System, version: int, folder: Path) -> None:
    system.trainer.save_hf(folder / f"v{version}")
    Colocation(system.trainer, system.rollout, releases=False, offloads=False).sync_weights(version)


def generate(system: System, prefix: str, prompts: list[Prompt], num: int, sampling: SamplingParams) -> Collected:
    return collect_step(
        plan_all(build_requests(prefix, prompts, num)),
        sampling,
        rollout=system.rollout,
        stream=system.stream,
        verdict_timeout_s=60,
    )


def completions(collected: Collected) -> list[Completion]:
    return [member.completion for group in collected.groups for member in group.members]


def to_row(prompts: list[Prompt], completion: Completion, advantage: float = 0.0) -> TrainSequence:
    prompt = next(p for p in prompts if p.prompt_id == completion.prompt_id)
    return TrainSequence(
        sequence_id=completion.completion_id,
        prompt_token_ids=prompt.token_ids,
        response=TokenColumns(ids=completion.tokens.ids, rollout_logprobs=completion.tokens.rollout_logprobs),
        loss_mask=[1] * len(completion.tokens),
        advantage=advantage,
    )


@torch.no_grad()
def hf_logprobs(directory: Path, rows: list[TrainSequence], temperature: float) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    result = []
    for row in rows:
        start = len(row.prompt_token_ids)
        logits = model(torch.tensor([row.prompt_token_ids + row.response_token_ids])).logits[0, start - 1 : -1]
        targets = torch.tensor(row.response_token_ids)[:, None]
        result.append(torch.log_softmax(logits / temperature, -1).gather(1, targets)[:, 0].tolist())
    return result


def largest_difference(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for row_a, row_b in zip(a, b, strict=True) for x, y in zip(row_a, row_b, strict=True))


@pytest.mark.parametrize("version", [0, 1])
def test_greedy_text_equals_hf_on_the_exported_weights(stack: Stack, version: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(stack.exported[version], dtype=torch.float32).eval()
    for group in stack.greedy[version].groups:
        prompt_ids = torch.tensor([group.prompt.token_ids])
        expected = model.generate(prompt_ids, do_sample=False, max_new_tokens=GREEDY.max_new_tokens)
        completion = group.members[0].completion
        assert completion.policy_version == version
        assert completion.token_ids == expected[0, prompt_ids.shape[1] :].tolist()


def test_the_update_changed_the_weights_that_the_engine_uses(stack: Stack) -> None:
    before, after = (completions(stack.greedy[version]) for version in (0, 1))
    assert any(a.tokens.rollout_logprobs != b.tokens.rollout_logprobs for a, b in zip(before, after, strict=True))


def test_hf_megatron_and_sglang_give_the_same_logprobs(stack: Stack) -> None:
    """On the sampled tokens, at the sampling temperature; the trainer holds version 1, so HF is asked for both."""
    sampled = completions(stack.sampled)
    rows = [to_row(stack.prompts, completion) for completion in sampled]
    engine = [completion.tokens.rollout_logprobs for completion in sampled]
    assert largest_difference(engine, hf_logprobs(stack.exported[0], rows, SAMPLED.temperature)) < 1e-4
    megatron = stack.system.trainer.logprobs(
        plan_batch(rows, [len(rows)], stack.config.train, temperature=SAMPLED.temperature)
    )
    assert largest_difference(megatron, hf_logprobs(stack.exported[1], rows, SAMPLED.temperature)) < 1e-4


def test_the_trainer_leaves_out_what_top_p_left_out(stack: Stack) -> None:
    """Engine and trainer hold version 1; the probabilities of both are over what could be drawn."""
    narrow = SamplingParams(temperature=0.7, top_p=0.6, max_new_tokens=8, returns_sampling_mask=True)
    drawn = completions(generate(stack.system, "narrow", stack.prompts, 4, narrow))
    engine = [completion.tokens.rollout_logprobs for completion in drawn]
    rows = [
        msgspec.structs.replace(to_row(stack.prompts, completion), response=completion.tokens) for completion in drawn
    ]
    drawn_from = {"temperature": narrow.temperature, "top_p": narrow.top_p}
    replayed = stack.system.trainer.logprobs(plan_batch(rows, [len(rows)], stack.config.train, **drawn_from))
    assert largest_difference(engine, replayed) < 1e-4
    everything = stack.system.trainer.logprobs(
        plan_batch(
            [to_row(stack.prompts, c) for c in drawn], [len(drawn)], stack.config.train, temperature=narrow.temperature
        )
    )
    assert largest_difference(engine, everything) > 0.05, "nothing was left out: the test shows nothing"


def test_a_group_shares_the_cache_of_its_prompt(stack: Stack) -> None:
    """A prompt above a prefill chunk (4,096 tokens) is computed once; the others compute its last token alone."""
    tokens = (stack.prompts[0].token_ids[::-1] * 61)[:4500]
    prompt = build_prompt("long", token_ids=tokens)
    members = completions(generate(stack.system, "long", [prompt], 4, SAMPLED))
    cached = sorted(member.cached_tokens for member in members)
    assert cached == [0, 4499, 4499, 4499]


def test_a_stop_string_ends_a_completion(stack: Stack) -> None:
    """Every answer of the policy opens with the same phrase, one token; a stop string within it ends decoding there."""
    stopping = SamplingParams(temperature=0.0, max_new_tokens=GREEDY.max_new_tokens, stop=["answer is"])
    for completion in completions(generate(stack.system, "stop", stack.prompts, 1, stopping)):
        assert completion.finish_reason == "stop"
        assert len(completion.token_ids) == 1


def test_an_engine_that_is_held_back_answers_in_time_and_is_not_taken_for_hung(stack: Stack) -> None:
    """Rewards lag, as nobody takes them: 64 completions are under way, 128 wait in the engine, and one is blocked."""
    system, number = stack.system, 40
    requests = build_requests("held", stack.prompts, number)
    system.stream.expect(requests)
    system.rollout.start(requests, GREEDY)
    (engine,) = system.rollout.actors
    held_ms: list[int] = []
    while len(held_ms) < 3:
        status = ray.get(engine.status.remote(), timeout=10)
        if status.progress[-1]:
            held_ms.append(status.progress[-1])
        time.sleep(0.02)
    assert held_ms == sorted(set(held_ms)), "it moves while it is held"
    assert status.num_in_flight > 0
    scored = [system.stream.next(timeout_s=60) for _ in range(NUM_PROMPTS * number)]
    assert None not in scored
    while system.rollout.poll() is None:
        time.sleep(0.02)
    assert system.stream.take_metrics()["time/held_back_s"] > 0


def test_abort_delivers_what_was_decoded(stack: Stack) -> None:
    """Every request ends, with reason "abort" or a natural one, and no token is lost on the way."""
    system, endless = stack.system, SamplingParams(temperature=1.0, max_new_tokens=4000)
    requests = build_requests("abort", stack.prompts, 4)
    system.stream.expect(requests)
    system.rollout.start(requests, endless)
    first = system.stream.next(timeout_s=60)
    assert first is not None
    system.rollout.stop()
    rest = [system.stream.next(timeout_s=60) for _ in range(NUM_PROMPTS * 4 - 1)]
    ended = [first, *[scored for scored in rest if scored is not None]]
    assert len(ended) == NUM_PROMPTS * 4
    for scored in ended:
        assert len(scored.completion.token_ids) == len(scored.completion.tokens.rollout_logprobs)
        assert scored.completion.finish_reason in ("abort", "stop", "length")


@dataclass
class OneRound:
    """Hands out this round and nothing else."""

    round_: ShardRound | None

    def begin_sync(self, version: int) -> None:
        pass

    def next_round(self) -> ShardRound | None:
        round_, self.round_ = self.round_, None
        return round_

    def end_sync(self, confirmed: Mapping[str, list[TensorEntry]]) -> None:
        raise AssertionError(f"{confirmed} was confirmed")


def test_a_changed_tensor_is_named_and_stops_the_update(stack: Stack) -> None:
    """The engine checks each tensor against its entry before it loads it."""
    rollout = stack.system.rollout
    trainer = stack.system.trainer
    trainer.begin_weights(7)
    round_ = trainer.next_weights()
    assert round_ is not None
    map_buffer(round_.engines[0][0].handle)[0] ^= 1
    name = round_.engines[0][0].entries[0].name
    with pytest.raises(WeightSyncError, match=rf"{re.escape(name)} of rank 0 of the engine, from train worker 0"):
        rollout.load_weights(OneRound(round_), 7)
