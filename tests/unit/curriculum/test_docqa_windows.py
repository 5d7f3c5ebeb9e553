"""Rows per length window: those of DocQA-RL-1.6K, and the generated ones that the third phase needs."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.curriculum.windows import build_phases, count_outside
from hybridflow.data.synth.bundle import SLACK_CHARS
from hybridflow.data.synth.spec import SynthSpec, generate_row, plan_chars
from hybridflow.errors import ConfigError
from hybridflow.tools.config_command import read_example
from hybridflow.types import Prompt
from tests.builders import build_prompt
from tests.unit.curriculum.docqa_lengths import LONG, LONGEST, MEAN, NUM_LONG, NUM_ROWS, list_lengths

LENGTHS = list_lengths()
SPEC = SynthSpec(tier="long", min_doc_tokens=60_000, doc_tokens=120_000, num_train=1600, num_test=100)
CHARS_PER_TOKEN = 4
"""Ratio of the long tier without a tokenizer."""


def prompts_of(lengths: list[int]) -> list[Prompt]:
    return [build_prompt(f"p-{number:06d}", token_ids=range(length)) for number, length in enumerate(lengths)]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The three-phase example."""
    path = tmp_path / "three.toml"
    path.write_text(read_example("three-phases"))
    return load_config([path], [], Config)


def test_the_fixture_has_what_is_known() -> None:
    assert (len(LENGTHS), sum(length >= LONG for length in LENGTHS), max(LENGTHS)) == (NUM_ROWS, NUM_LONG, LONGEST)
    assert statistics.mean(LENGTHS) == pytest.approx(MEAN, rel=0.01)
    assert 0.75 <= sum(length < LONG for length in LENGTHS) / NUM_ROWS < 0.8


def test_rows_per_window(config: Config) -> None:
    docqa, long = config.data.train_path, config.curriculum.phases[2].train_path
    assert docqa and long
    planned = [plan_chars(SPEC, "train", 0, index) for index in range(SPEC.num_train)]
    shortest = [(chars - SLACK_CHARS) // CHARS_PER_TOKEN for chars in planned]
    prompts = {docqa: prompts_of(LENGTHS), long: prompts_of(shortest)}
    phases = build_phases(config, prompts)
    assert [phase.name for phase in phases] == ["short", "long", "longest"]
    counts = [len(phase.prompts) for phase in phases]
    assert counts[2] == 1600 and sum(counts[:2]) == 1591 and 200 <= counts[1] <= 300  # 200 to 300 are reported
    assert count_outside(config, prompts) == 0
    assert max(planned) <= 120_000 * CHARS_PER_TOKEN


def test_a_planned_length_is_that_of_the_row() -> None:
    for index in (3, 1597):
        length = len(generate_row(SPEC, "train", 0, index).prompt[0]["content"])
        assert 0 <= plan_chars(SPEC, "train", 0, index) - length <= SLACK_CHARS


def test_without_generated_rows_the_third_phase_is_refused(config: Config) -> None:
    docqa, long = config.data.train_path, config.curriculum.phases[2].train_path
    prompts = {docqa: prompts_of(LENGTHS), long: prompts_of(LENGTHS)}
    with pytest.raises(ConfigError, match=r"none of the 1591 rows.*longest \(60000, 120000\]: 0"):
        build_phases(config, prompts)
