"""Every registered objective at every layout, order of rows and packing; and one that this module adds by itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import torch

from hybridflow.algorithms.algorithm import build_algorithm
from hybridflow.algorithms.losses import MAX_LOG_RATIO
from hybridflow.algorithms.measures import compute_kl
from hybridflow.algorithms.objective import TermValue, TokenBatch
from hybridflow.algorithms.reductions import Reduction
from hybridflow.algorithms.registry import ADVANTAGES, AGGREGATIONS, MEASURES, TERMS
from hybridflow.algorithms.spec import AlgorithmSpec, ObjectiveSpec
from hybridflow.batching.microbatch import build_units, plan_micro_batches
from hybridflow.config.algorithm_parts import OF_SEQUENCES
from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.errors import ConfigError
from hybridflow.loop.batch import build_batch
from hybridflow.trainer.core import check_objective
from hybridflow.trainer.policy_update import update_policy
from hybridflow.types import Group, TrainBatch, UpdateReport
from megatron_ext.parallel.layout import Layout
from tests.builders import build_group, build_prompt, build_request
from tests.dist_cpu import rank_programs
from tests.dist_cpu.launch import run_ranks
from tests.dist_cpu.test_policy_update import LR, TEMPERATURE, make_sequences
from tests.unit.loop.fakes import build_config

pytestmark = [pytest.mark.dist_cpu, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Reinforce:
    """-A log p, a loss that the product does not have."""

    columns: ClassVar = ("advantages",)
    metrics: ClassVar = {"policy/toy": Reduction("mean")}

    def __call__(self, tokens: TokenBatch) -> TermValue:
        loss_N = -tokens.columns["advantages"] * tokens.logprobs_N
        return TermValue(loss_N, {"policy/toy": loss_N})


@dataclass(frozen=True)
class KLTerm:
    """A tenth of the estimate of KL(old || new)."""

    columns: ClassVar = ("old_logprobs",)
    metrics: ClassVar[Mapping[str, Reduction]] = {}

    def __call__(self, tokens: TokenBatch) -> TermValue:
        log_ratio_N = (tokens.logprobs_N - tokens.columns["old_logprobs"]).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return TermValue(0.1 * compute_kl(log_ratio_N))


@dataclass(frozen=True)
class SignOfReward:
    """+-1 by whether the reward is above a half."""

    def __call__(self, groups: Sequence[Group], rewards: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
        return [[None if r is None else (1.0 if r > 0.5 else -1.0) for r in of_group] for of_group in rewards]


TERMS.add("toy_reinforce", Reinforce)
TERMS.add("toy_kl", KLTerm)
ADVANTAGES.add("toy_sign", SignOfReward)

SECTION = AlgorithmSection(clip_low=0.05, clip_high=0.06, entropy_coefficient=0.02)
PARAMETERS = SECTION.model_dump() | {"normaliser_tokens": 16, "kl_coefficient": 0.1, "kl_estimator": "unbiased"}
OWN = "own_example:loss"
"""The worked example of docs/own-algorithm.md, which ranks import by its name."""


def spec_of(terms: list[str], aggregation: str) -> ObjectiveSpec:
    return ObjectiveSpec(terms=terms, aggregation=aggregation, measures=MEASURES.names, parameters=PARAMETERS)


OBJECTIVES = {
    **{term: spec_of([term], "sequence_mean" if term in OF_SEQUENCES else "token_mean") for term in TERMS.names},
    **{f"clip, {aggregation}": spec_of(["clip"], aggregation) for aggregation in AGGREGATIONS.names},
    "two terms": spec_of(["clip", "toy_kl"], "token_mean"),
    OWN: spec_of([OWN], "token_mean"),
}
BOUNDS = {"tis_cap": 0.2, "icepop_low": 0.02, "icepop_high": 0.3, "geometric_low": 0.027, "geometric_high": None}
BOUNDS |= {"outlier_low": 1e-3, "outlier_high": None, "off_policy_delta": 1e-3, "off_policy_against": "trainer"}
"""The engine's log-probabilities are invented, and far above the trainer's: each mask takes some rows, not all."""
CORRECTIONS_OF = {"clip": ["tis", "geometric", "outlier", "off_policy"], "gspo": ["icepop", "outlier"]}
for corrected, parts in CORRECTIONS_OF.items():
    OBJECTIVES[f"corrected {corrected}"] = ObjectiveSpec(
        terms=[corrected, "entropy"],
        aggregation="sequence_mean",
        corrections=parts,
        measures=MEASURES.names,
        parameters=PARAMETERS | BOUNDS,
    )
NUM_ROWS, NUM_MINIS = 24, 2
REL, ABS = 1e-5, 1e-9
VARIANTS = {"as they are": (256, False), "reversed": (256, True), "one row a micro-batch": (16, False)}


def make_batch(dp: int, budget: int, is_reversed: bool) -> TrainBatch:
    """Two mini-batches of twelve rows."""
    size = NUM_ROWS // NUM_MINIS
    sequences, plan = [], []
    for first in range(0, NUM_ROWS, size):
        rows = make_sequences()[first : first + size]
        rows = rows[::-1] if is_reversed else rows
        planned = plan_micro_batches(build_units(rows), num_dp_ranks=dp, max_tokens_per_micro_batch=budget)
        plan.append([[[first + row for row in rows] for rows in of_rank] for of_rank in planned])
        sequences += rows
    return TrainBatch(sequences=sequences, plan=plan, temperature=TEMPERATURE)


def run_objectives(
    topology: Any, layout: Layout, hf_dir: Path, own: Path, variants: list[str]
) -> dict[Any, list[UpdateReport]]:
    """The reports of each objective and variant, each from the same weights, in float64: what differs is no rounding.

    `own` is the folder of the user's own function.
    """
    policy = rank_programs.open_policy(hf_dir, layout, topology, torch.float64)
    at_start = rank_programs.copy_weights(policy)
    found: dict[Any, list[UpdateReport]] = {}
    for (name, spec), variant in itertools.product(OBJECTIVES.items(), variants):
        objective = msgspec.structs.replace(spec, parameters=spec.parameters | {"module_folders": [str(own)]})
        with torch.no_grad():
            for parameter, value in zip(rank_programs.parameters_of(policy), at_start, strict=True):
                parameter.copy_(value)
        policy.reset_optimizer(rank_programs.OPTIONS)
        found[name, variant] = update_policy(policy, make_batch(layout.dp, *VARIANTS[variant]), LR, objective=objective)
    return found


def numbers(reports: list[UpdateReport]) -> dict[str, list[float]]:
    """Loss, gradient norm and every metric, by optimizer step."""
    names = {"loss": [r.loss for r in reports], "grad_norm": [r.grad_norm for r in reports]}
    return names | {name: [report.metrics[name].value for report in reports] for name in reports[0].metrics}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the example of a loss of one's own."""
    text = (Path(__file__).parents[2] / "docs/own-algorithm.md").read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_example.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    return folder


@pytest.fixture(scope="module")
def alone(hf_dirs: dict[str, Path], own: Path) -> dict[Any, list[UpdateReport]]:
    (found,) = run_ranks(Layout(), run_objectives, hf_dirs["qwen3_tied"], own, list(VARIANTS))
    return found


def test_order_and_packing_of_rows_change_nothing(alone: dict[Any, list[UpdateReport]]) -> None:
    for name, variant in itertools.product(OBJECTIVES, VARIANTS):
        plain = numbers(alone[name, "as they are"])
        assert plain["grad_norm"][0] > 0 or name.startswith("toy_kl")  # the KL of a policy to itself has no gradient
        for key, values in numbers(alone[name, variant]).items():
            assert values == pytest.approx(plain[key], rel=REL, abs=ABS), (name, variant, key)


@pytest.mark.parametrize(
    "layout", [Layout(tp=2), Layout(pp=2), Layout(dp=2), Layout(cp=2)], ids=["tp", "pp", "dp", "cp"]
)
def test_layouts_change_nothing(
    layout: Layout, alone: dict[Any, list[UpdateReport]], hf_dirs: dict[str, Path], own: Path
) -> None:
    for found in run_ranks(layout, run_objectives, hf_dirs["qwen3_tied"], own, ["as they are"]):
        assert {name for name, _ in found} == set(OBJECTIVES)
        for at, reports in found.items():
            for key, values in numbers(alone[at]).items():
                assert numbers(reports)[key] == pytest.approx(values, rel=REL, abs=ABS), (at, key)


@pytest.mark.parametrize("corrected", CORRECTIONS_OF)
def test_corrections_mask_some_rows_and_not_all(corrected: str, alone: dict[Any, list[UpdateReport]]) -> None:
    """And so what is compared above is not nothing."""
    found = numbers(alone[f"corrected {corrected}", "as they are"])
    for name in ("masked_fraction", "masked_sequence_fraction", *(["capped_fraction"] if corrected == "clip" else [])):
        assert all(0 < share < 1 for share in found[f"correction/{name}"]), name


def test_a_worker_that_cannot_import_a_function_says_so(tmp_path: Path) -> None:
    """The folders of the driver need not be on its node."""
    elsewhere = ObjectiveSpec(
        terms=["only_there:loss"], aggregation="token_mean", parameters={"module_folders": [str(tmp_path)]}
    )
    with pytest.raises(ConfigError) as caught:
        check_objective(elsewhere, "train worker 3")
    assert "train worker 3 cannot build the objective: algorithm.loss = 'only_there:loss'" in str(caught.value)
    assert "name a module that can be imported on every node" in str(caught.value)


def run_one(topology: Any, layout: Layout, hf_dir: Path, batch: TrainBatch, objective: ObjectiveSpec) -> Any:
    policy = rank_programs.open_policy(hf_dir, layout, topology)
    return update_policy(policy, batch, LR, objective=objective)


def test_a_loss_and_an_advantage_of_ones_own_need_no_other_edit(tmp_path: Path, hf_dirs: dict[str, Path]) -> None:
    """Registered above by a line each: from groups through the batch to an optimizer step."""
    group = build_group(build_request(build_prompt(token_ids=[1, 2]), 3), [1.0, 0.0, None])
    spec = AlgorithmSpec(
        filters=["same_reward"],
        advantage="toy_sign",
        objective=ObjectiveSpec(terms=["toy_reinforce"], aggregation="token_mean"),
    )
    algorithm = build_algorithm(spec)
    batch = build_batch([group], build_config(tmp_path, train__layout={"dp": 1}), algorithm=algorithm).batch
    assert batch is not None and [row.advantage for row in batch.sequences] == [1.0, -1.0]
    ((report,),) = run_ranks(Layout(), run_one, hf_dirs["qwen3_tied"], batch, algorithm.objective)
    # Both rows have the same tokens: their losses cancel, and so do their gradients.
    assert (report.num_tokens, report.loss) == (4, pytest.approx(0.0, abs=1e-6))
    assert report.metrics["policy/toy"].value == pytest.approx(report.loss, abs=1e-9)
    assert report.grad_norm == pytest.approx(0.0, abs=1e-4)
