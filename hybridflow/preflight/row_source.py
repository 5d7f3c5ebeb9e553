"""Sources of rows of a split: a file, the folder of a run that is resumed, or the generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from hybridflow.config.sections import Config
from hybridflow.data.rows import read_rows
from hybridflow.data.schema import BadRow, Row
from hybridflow.data.synth.spec import Split, SynthSpec, generate_rows
from hybridflow.errors import ConfigError, DataError
from hybridflow.rewards.judge_question import Question, find_question
from hybridflow.rewards.registry import Registry

NUM_NAMED = 5
"""Number of rows with one fault that are named."""
SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True)
class RowSource:
    """Source of the rows of one split."""

    split: Split
    path: str | None
    """None: generated as `data.synth` says."""
    given: str | None = None
    """The path that the configuration gives."""

    @staticmethod
    def of(config: Config, split: Split, saved: Path | None) -> RowSource:
        """As the configuration says; rows that an earlier process has generated into `saved` are read from there."""
        given = config.data.train_path if split == "train" else config.data.test_path
        if given:
            return RowSource(split, given, given)
        if saved is not None and data_file(saved, split).exists():
            return RowSource(split, str(data_file(saved, split)))
        return RowSource(split, None)

    @property
    def name(self) -> str:
        """For errors."""
        return self.path or "data.synth"

    def load_all(self, config: Config) -> list[Row | BadRow]:
        """Reads or generates all rows, with a BadRow for each that cannot be used.

        Raises DataError, or ConfigError where they cannot be generated.
        """
        return read_rows(self.path) if self.path is not None else list(self.generate(config))

    def generate(self, config: Config, num_rows: int | None = None) -> list[Row]:
        """Generates the rows of `hybridflow data synth` with these settings, or the first `num_rows` of them."""
        try:
            spec = SynthSpec(**config.data.synth.model_dump())
        except ValidationError as error:
            problems = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
            raise ConfigError(f"data.synth: cannot generate this data set: {problems}") from error
        if num_rows is not None:
            count = "num_train" if self.split == "train" else "num_test"
            spec = spec.model_copy(update={count: min(num_rows, getattr(spec, count))})
        return generate_rows(spec, self.split, config.run.seed)


def find_questions(config: Config, registry: Registry, rows: Sequence[Row | BadRow], source: str) -> list[str]:
    """The question of each row, which records hold and a judge is told; "" where none is found.

    Raises DataError, naming rows, for those that a judge may be asked about and that have no question.
    """
    judge = config.reward.judge
    questions = [
        find_question(row.prompt, row.extra_info, judge) if isinstance(row, Row) else Question("") for row in rows
    ]
    if not judge.endpoints:
        return [question.text for question in questions]
    missing = [
        number
        for number, (row, question) in enumerate(zip(rows, questions, strict=True))
        if isinstance(row, Row) and not question.text and registry.is_judged(row.data_source, row.ability)
    ]
    if missing:
        named = ", ".join(map(str, missing[:NUM_NAMED])) + (", ..." if len(missing) > NUM_NAMED else "")
        raise DataError(f"{source}: {len(missing)} of {len(rows)} rows, row {named}: {questions[missing[0]].why}")
    return [question.text for question in questions]


def data_file(directory: Path, split: str) -> Path:
    """Path of generated rows that are kept."""
    return directory / f"{split}.parquet"
