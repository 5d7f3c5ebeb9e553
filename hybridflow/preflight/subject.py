"""The subject of the checks (the configuration, and what several of them read), and findings, which they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from hybridflow.config.phases import train_configs
from hybridflow.config.sections import Config
from hybridflow.data.rows import DataSurvey, survey_rows
from hybridflow.data.schema import Row
from hybridflow.data.synth.spec import Split
from hybridflow.errors import HybridFlowError
from hybridflow.preflight.row_source import NUM_NAMED, SPLITS, RowSource
from hybridflow.preflight.shape import ModelShape, read_shape
from hybridflow.rewards.registry import Registry, build_registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Level = Literal["error", "warning", "fact"]
WAIT_S = 3.5
"""Longest wait for a verifier or a judge, unless the configuration sets a limit of its own for it."""


class Finding(NamedTuple):
    """One line for the user; an error or a warning says what, where, the value and the remedy."""

    level: Level
    text: str


class Check(NamedTuple):
    """One of the list. What it raises for users (HybridFlowError) is an error found."""

    name: str
    run: Callable[[Subject], Iterable[Finding]]
    is_ahead: bool = False
    """It waits for a server, and looks at the configuration alone: begun with the first, in a thread of its own."""


def name_rows(numbers: list[int]) -> str:
    """ "row 3", "rows 3, 5", "rows 3, 5, 8, 9, 12, ..."."""
    shown = ", ".join(map(str, numbers[:NUM_NAMED])) + (", ..." if len(numbers) > NUM_NAMED else "")
    return f"row{'s' if len(numbers) > 1 else ''} {shown}"


T = TypeVar("T")


class AlreadyToldError(Exception):
    """Something cannot be read, and the check that tried it first has said so."""


class Subject:
    """A run that is to be.

    Args:
        config: Valid, section by section.
        saved: Folder with rows that an earlier process of this run generated; None for a new run.
        evaluates: Rows of the test split are a part of it, where the run evaluates at all.
    """

    def __init__(self, config: Config, saved: Path | None = None, *, evaluates: bool = True) -> None:
        self.config = config
        self.saved = saved
        self._evaluates = evaluates and config.eval.num_prompts > 0
        self.has_model = True
        """False once it is told that there is none at model.path."""
        self._known: dict[str, Any] = {}
        self._failed: set[str] = set()

    @property
    def splits(self) -> list[Split]:
        """The splits that the run reads."""
        reads = {"train": self.config.data.train_path in train_configs(self.config), "test": self._evaluates}
        return [split for split in SPLITS if reads[split]]

    def of_train_rows(self, config: Config) -> Subject:
        """The subject of the training rows that `config` names, known once; evaluation is no part of it."""
        return self._once(f"rows of {config.data.train_path}", lambda: Subject(config, self.saved, evaluates=False))

    def source(self, split: Split) -> RowSource:
        return RowSource.of(self.config, split, self.saved)

    def survey(self, split: Split) -> DataSurvey | None:
        """A survey of the file of a split; None where rows are generated."""
        path = self.source(split).path
        return None if path is None else self._once(f"survey {path}", lambda: survey_rows(path))

    def rows(self, split: Split) -> dict[int, Row]:
        """Rows that can be used, by their number in the file; of generated ones, the first."""
        survey = self.survey(split)
        if survey is None:
            return self._once(f"rows {split}", lambda: dict(enumerate(self.source(split).generate(self.config, 1))))
        return {number: row for number, row in enumerate(survey.rows) if isinstance(row, Row)}

    @property
    def registry(self) -> Registry:
        return self._once("registry", lambda: build_registry(self.config.reward))

    def need_model(self) -> None:
        """Raises AlreadyToldError where there is none."""
        if not self.has_model:
            raise AlreadyToldError("model")

    @property
    def shape(self) -> ModelShape | None:
        """None where config.json leaves out what a library would fill in."""
        self.need_model()
        return self._once("shape", lambda: read_shape(self.config.model.path))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from hybridflow.policy.load import load_tokenizer

        self.need_model()
        return self._once("tokenizer", lambda: load_tokenizer(self.config.model.path))

    def _once(self, key: str, build: Callable[[], T]) -> T:
        if key in self._failed:
            raise AlreadyToldError(key)
        if key not in self._known:
            try:
                self._known[key] = build()
            except HybridFlowError:
                self._failed.add(key)
                raise
        return self._known[key]
