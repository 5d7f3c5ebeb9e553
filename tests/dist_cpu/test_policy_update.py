"""The optimizer steps of an RL step, at several layouts, against transformers and torch's AdamW."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from hybridflow.algorithms.spec import policy_spec
from hybridflow.batching.microbatch import build_units, plan_micro_batches
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.trainer.measuring import measure_rows
from hybridflow.trainer.policy_update import update_policy
from hybridflow.types import MeasuredRow, TokenColumns, TrainBatch, TrainSequence, UpdateReport
from megatron_ext.parallel.layout import Layout
from megatron_ext.policy import MegatronPolicy
from tests.dist_cpu import rank_programs
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.tiny_models import VOCAB_SIZE, load_model

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]

NUM_PROMPTS, PER_PROMPT, MINI_PROMPTS = 128, 2, 32
TEMPERATURE, LR = 0.7, 3e-3
ALGORITHM = AlgorithmSection(num_completions=PER_PROMPT, clip_low=0.05, clip_high=0.06)
LAYOUTS = {"one": Layout(), "tp2": Layout(tp=2), "pp2": Layout(pp=2), "dp2": Layout(dp=2), "cp2": Layout(cp=2)}


@cache
def make_sequences() -> list[TrainSequence]:
    """256 rows of unequal length, the engine's log-probabilities invented, some tokens of an older policy."""
    chance = random.Random(5)
    rows = []
    for number in range(NUM_PROMPTS * PER_PROMPT):
        length = chance.randint(2, 9)
        prompt = [chance.randrange(VOCAB_SIZE) for _ in range(chance.randint(3, 6))]
        ids = [chance.randrange(VOCAB_SIZE) for _ in range(length)]
        advantage = chance.gauss(0, 1)
        logprobs = [-chance.random() * 5 for _ in range(length)]
        rows.append(
            TrainSequence(
                sequence_id=f"s{number}",
                prompt_token_ids=prompt,
                response=TokenColumns(ids=ids, rollout_logprobs=logprobs),
                loss_mask=[1] * length,
                advantage=advantage,
                staleness=[1] + [0] * (length - 1) if number % 5 == 0 else [],
                measured={"ref_logprobs": [logprob - 0.1 for logprob in logprobs]},
            )
        )
    return rows


def make_batch(dp: int, mini_prompts: int) -> TrainBatch:
    sequences, size = make_sequences(), mini_prompts * PER_PROMPT
    plan = []
    for first in range(0, len(sequences), size):
        units = build_units(sequences[first : first + size])
        of_mini = plan_micro_batches(units, num_dp_ranks=dp, max_tokens_per_micro_batch=256)
        plan.append([[[first + row for row in rows] for rows in of_rank] for of_rank in of_mini])
    return TrainBatch(sequences=sequences, plan=plan, temperature=TEMPERATURE)


def run_update(
    topology: Any,
    layout: Layout,
    hf_dir: Path,
    mini_prompts: int,
    num_epochs: int,
    dtype: torch.dtype = torch.float32,
    algorithm: AlgorithmSection = ALGORITHM,
    is_measured: bool = False,
) -> dict[str, Any]:
    """Rows are measured before; with `is_measured` (one process) the update is told what came of it."""
    policy = rank_programs.open_policy(hf_dir, layout, topology, dtype)
    policy.keep_reference()
    batch = make_batch(layout.dp, NUM_PROMPTS)
    measured = measure_rows(policy, batch, ["old_logprobs", "entropy", "ref_logprobs"])
    batch = make_batch(layout.dp, mini_prompts)
    if is_measured:
        rows = [msgspec.structs.replace(row, measured=measured[n]) for n, row in enumerate(batch.sequences)]
        batch = msgspec.structs.replace(batch, sequences=rows)
    with count_forward_passes() as passes:
        reports = update_policy(policy, batch, LR, objective=policy_spec(algorithm), num_epochs=num_epochs)
    return {
        "reports": reports,
        "weights": rank_programs.exported(policy),
        "measured": measured,
        "passes": len(passes),
    }


@contextmanager
def count_forward_passes() -> Iterator[list[Any]]:
    """Calls of `MegatronPolicy.logprobs`, one after the other."""
    calls: list[Any] = []
    whole = MegatronPolicy.logprobs

    def counted(self: MegatronPolicy, *arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        return whole(self, *arguments, **keywords)

    MegatronPolicy.logprobs = counted  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        MegatronPolicy.logprobs = whole  # type: ignore[method-assign]


class Reference:
    """The recipe's step with transformers: old log-probabilities once, then an AdamW step per mini-batch."""

    def __init__(
        self,
        hf_dir: Path,
        mini_prompts: int,
        num_epochs: int,
        dtype: torch.dtype = torch.float32,
        entropy_coefficient: float = 0.0,
    ) -> None:
        self.entropy_coefficient = entropy_coefficient
        self.model = load_model(hf_dir).to(dtype)
        self.model.set_attn_implementation("sdpa")  # the eager one has its softmax in float32
        options = rank_programs.OPTIONS
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LR, betas=options.betas, eps=options.eps)
        sequences, size = make_sequences(), mini_prompts * PER_PROMPT
        with torch.no_grad():
            self.old = [logprobs_T for logprobs_T, _ in self.logprobs(sequences)]
        self.losses, self.norms, self.kls, self.ratio_maxima = [], [], [], []
        for _ in range(num_epochs):
            for first in range(0, len(sequences), size):
                optimizer.zero_grad()
                loss = self.loss(sequences[first : first + size], self.old[first : first + size])
                loss.backward()
                self.losses.append(loss.item())
                self.norms.append(torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip_grad).item())
                optimizer.step()

    def logprobs(self, sequences: Sequence[TrainSequence]) -> list[tuple[Tensor, Tensor]]:
        """Per row, log-probabilities of the response tokens and the entropies there. Rows of one length go through the
        model together: nothing is padded."""
        by_length: dict[int, list[int]] = {}
        tokens = [torch.tensor(row.prompt_token_ids + row.response_token_ids) for row in sequences]
        for number, tokens_T in enumerate(tokens):
            by_length.setdefault(len(tokens_T), []).append(number)
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for numbers in by_length.values():
            logits_BTV = self.model(torch.stack([tokens[number] for number in numbers])).logits / TEMPERATURE
            for number, logits_TV in zip(numbers, logits_BTV, strict=True):
                start = len(sequences[number].prompt_token_ids)
                log_softmax = logits_TV[start - 1 : -1].log_softmax(-1)
                logprobs_T = log_softmax.gather(1, tokens[number][start:, None])[:, 0]
                found[number] = logprobs_T, -(log_softmax.exp() * log_softmax).sum(-1)
        return [found[number] for number in range(len(sequences))]

    def loss(self, sequences: Sequence[TrainSequence], old: Sequence[Tensor]) -> Tensor:
        logprobs, entropies = zip(*self.logprobs(sequences), strict=True)
        log_ratios = [logprobs_T - old_T for logprobs_T, old_T in zip(logprobs, old, strict=True)]
        terms = []
        for row, log_ratio_T in zip(sequences, log_ratios, strict=True):
            ratio_T = log_ratio_T.exp()
            clipped_T = ratio_T.clamp(1 - ALGORITHM.clip_low, 1 + ALGORITHM.clip_high)
            terms.append(-torch.minimum(ratio_T * row.advantage, clipped_T * row.advantage))
        log_ratio_N = torch.cat(log_ratios).detach()
        self.kls.append((log_ratio_N.exp() - 1 - log_ratio_N).mean().item())
        self.ratio_maxima.append(log_ratio_N.exp().max().item())
        return torch.cat(terms).mean() - self.entropy_coefficient * torch.cat(entropies).mean()


@pytest.fixture(scope="module")
def quarters(hf_dirs: dict[str, Path]) -> Reference:
    return Reference(hf_dirs["qwen3_tied"], MINI_PROMPTS, 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_four_optimizer_steps_on_quarters_equal_those_of_transformers(
    name: str, quarters: Reference, hf_dirs: dict[str, Path]
) -> None:
    ranks = run_ranks(LAYOUTS[name], run_update, hf_dirs["qwen3_tied"], MINI_PROMPTS, 1)
    for rank in ranks:
        assert rank["passes"] == 1
        reports: list[UpdateReport] = rank["reports"]
        assert [report.mini_batch for report in reports] == [0, 1, 2, 3]
        assert [report.loss for report in reports] == pytest.approx(quarters.losses, rel=0, abs=1e-5)
        assert [report.grad_norm for report in reports] == pytest.approx(quarters.norms, rel=1e-5)
        assert values(reports, "policy/kl") == pytest.approx(quarters.kls, rel=1e-3, abs=1e-7)
        assert values(reports, "policy/ratio_max") == pytest.approx(quarters.ratio_maxima, rel=1e-4)
        assert any(values(reports[1:], "policy/clip_fraction_low") + values(reports[1:], "policy/clip_fraction_high"))
        assert_mismatch(reports, quarters.old)
    assert_measured([rank["measured"] for rank in ranks], quarters.old)
    weights = {name: tensor for rank in ranks for name, tensor in rank["weights"].items()}
    for name, expected in quarters.model.state_dict().items():
        if name in weights:
            assert (weights[name] - expected).abs().max() < 1e-5, name


def assert_measured(of_ranks: Sequence[dict[int, MeasuredRow]], old: Sequence[Tensor]) -> None:
    """Each row once, by the policy and by its reference, which has the same weights here; entropies are no less than
    0 and no more than those of equal chances."""
    measured = {number: row for rank in of_ranks for number, row in rank.items()}
    assert sorted(measured) == list(range(len(old))) and sum(map(len, of_ranks)) == len(old)
    for number, row in measured.items():
        assert row["old_logprobs"] == pytest.approx(old[number].tolist(), rel=0, abs=1e-5)
        assert row["ref_logprobs"] == row["old_logprobs"]
        assert all(0 <= entropy <= math.log(VOCAB_SIZE) + 1e-6 for entropy in row["entropy"])


def test_old_logprobs_that_were_measured_are_not_computed_again(quarters: Reference, hf_dirs: dict[str, Path]) -> None:
    (rank,) = run_ranks(Layout(), run_update, hf_dirs["qwen3_tied"], MINI_PROMPTS, 1, torch.float32, ALGORITHM, True)
    assert rank["passes"] == 0
    assert [report.loss for report in rank["reports"]] == pytest.approx(quarters.losses, rel=0, abs=1e-5)


def values(reports: list[UpdateReport], name: str) -> list[float]:
    """One metric of each optimizer step."""
    return [report.metrics[name].value for report in reports]


def assert_mismatch(reports: list[UpdateReport], old: Sequence[Tensor]) -> None:
    """Gap of old and engine log-probabilities by staleness, from whichever pass gave the old ones."""
    for report in reports:
        size = MINI_PROMPTS * PER_PROMPT
        rows = range(report.mini_batch * size, (report.mini_batch + 1) * size)
        for staleness, suffix in enumerate(["", "/staleness_1"]):
            mean, largest = (report.metrics[f"policy/logprob_{name}{suffix}"] for name in ("gap", "gap_max"))
            gaps = [
                abs(old[row][i].item() - logprob)
                for row in rows
                for i, logprob in enumerate(make_sequences()[row].response.rollout_logprobs)
                if (make_sequences()[row].staleness or [0] * 99)[i] == staleness
            ]
            assert mean.num_tokens == len(gaps)
            assert mean.value == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)
            assert largest.value == pytest.approx(max(gaps), rel=1e-5)
        assert "policy/logprob_gap/staleness_2" not in report.metrics


def test_epochs_keep_the_old_logprobs_of_the_first(hf_dirs: dict[str, Path]) -> None:
    """Two passes over two halves: four optimizer steps, all against the policy that decoded; with an entropy bonus."""
    halves = Reference(hf_dirs["qwen3_tied"], NUM_PROMPTS // 2, 2, entropy_coefficient=0.3)
    algorithm = ALGORITHM.model_copy(update={"entropy_coefficient": 0.3})
    arguments = (hf_dirs["qwen3_tied"], NUM_PROMPTS // 2, 2, torch.float32, algorithm)
    (rank,) = run_ranks(Layout(), run_update, *arguments)
    reports: list[UpdateReport] = rank["reports"]
    assert [(report.epoch, report.mini_batch) for report in reports] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [report.loss for report in reports] == pytest.approx(halves.losses, rel=0, abs=1e-5)
    assert [report.grad_norm for report in reports] == pytest.approx(halves.norms, rel=1e-5)
    assert values(reports, "policy/kl") == pytest.approx(halves.kls, rel=1e-3, abs=1e-7)
    for name, expected in halves.model.state_dict().items():
        if name in rank["weights"]:
            assert (rank["weights"][name] - expected).abs().max() < 1e-5, name
