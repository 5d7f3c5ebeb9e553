"""`hybridflow check-algorithm`, and the worked example of docs/own-algorithm.md as it stands there."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hybridflow import cli
from hybridflow.preflight.algorithm import check_functions
from hybridflow.preflight.load import load_run
from hybridflow.preflight.subject import Finding, Subject

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/own-algorithm.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = re.findall(r"^    \.venv/bin/hybridflow (check-algorithm .*)$", TEXT, re.MULTILINE)
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with the two files of the example."""
    (tmp_path / "mine.py").write_text(BLOCKS["python"])
    (tmp_path / "mine.toml").write_text(BLOCKS["toml"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit code, what was printed, errors last) of a command line."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["hybridflow", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return int(caught.value.code or 0), printed.out + printed.err

    return run


def preflight(folder: Path, *changes: str) -> list[Finding]:
    model = f"model.path={ROOT / 'configs/models/tiny'}"
    config, problems = load_run([ROOT / "configs/quickstart.toml", folder / "mine.toml"], [model, *changes])
    assert config is not None and problems == []
    return list(check_functions(Subject(config)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_example_find_nothing_broken(command: str, run: Run) -> None:
    code, printed = run(*shlex.split(command))
    assert code == 0 and "checks, all hold" in printed and "BROKEN" not in printed
    assert "floor = 0.1" in printed or "mine:loss" not in command


def test_a_run_of_the_example_is_let_through(folder: Path) -> None:
    found = preflight(folder)
    assert [finding.level for finding in found] == ["fact"] * 4
    names = ("loss = 'mine:loss'", "advantage = 'mine:advantage'", "filter = 'mine:nearly_solved'", "metrics = 'mine:")
    for finding, name in zip(found, names, strict=True):
        assert finding.text.startswith(f"algorithm.{name}")


@pytest.mark.parametrize(
    ("code", "changes", "level", "told"),
    [
        ("def loss(logprobs): return logprobs.sum()", [], "error", "it returned float32 of shape [] for 23 tokens"),
        ("def loss(logprobs): return logprobs.sqrt()", [], "error", "ordinary values: loss of token"),
        ("def loss(logprobs, ref_logprobs): return -logprobs", [], "error", "it takes ref_logprobs, and algorithm.kl"),
        (
            "def loss(logprobs, rows): return -rows.spread(rows.mean(logprobs))\nloss.of_sequences = True",
            [],
            "error",
            "the loss 'mine:loss' is of whole sequences, and the aggregation 'token_mean' would weigh them",
        ),
        ("def loss(logprobs, beta): return logprobs", [], "error", "it takes 'beta', which nobody gives"),
        ("def lost(logprobs): return logprobs", [], "error", "has no 'loss'. Remedy: did you mean 'lost'?"),
        ("import no_such_module", [], "error", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def loss(logprobs) return 1", [], "error", "SyntaxError"),
        (
            "def loss(logprobs): return logprobs - logprobs.max()",
            [],
            "error",
            "no tokens: it raised RuntimeError: max()",
        ),
        (
            "def loss(logprobs, advantages): return -logprobs * advantages.mul_(2)",
            [],
            "error",
            "inputs untouched: it changes advantages in place; other parts read the same tensor",
        ),
        (
            "def loss(logprobs): return -logprobs / max(len(logprobs), 1)",
            [],
            "warning",
            "breaks packing: two micro-batches: loss of token 0 of row 0 is",
        ),
        (
            "def loss(logprobs): return -logprobs",
            ["algorithm.parameters.flor=1"],
            "error",
            "algorithm.parameters.flor = 1: no function of algorithm.loss, advantage, filter or metrics takes it",
        ),
    ],
)
def test_what_a_run_is_refused_or_warned_for(
    code: str, changes: list[str], level: str, told: str, folder: Path
) -> None:
    (folder / "mine.py").write_text(code + "\n")
    (folder / "mine.toml").write_text('[algorithm]\nloss = "mine:loss"\n')
    found = preflight(folder, *changes)
    worst = [finding for finding in found if finding.level == level]
    assert worst and "algorithm." in worst[0].text and told in worst[0].text and "Remedy: " in worst[0].text


def test_parameters_without_a_function_are_refused_before_torch_is_loaded(folder: Path) -> None:
    (folder / "mine.toml").write_text("[algorithm]\nparameters = { floor = 0.1 }\n")
    (found,) = preflight(folder)
    assert found.level == "error" and "algorithm.parameters.floor = 0.1" in found.text


def test_a_break_is_told_with_numbers_and_by_the_exit_code(folder: Path, run: Run) -> None:
    (folder / "mine.py").write_text("def loss(logprobs, advantages):\n    return -logprobs * advantages.mean()\n")
    code, printed = run("check-algorithm", "mine:loss")
    assert code == 1 and re.search(r"BROKEN +packing +two micro-batches: loss of token 0 of row 0 is -?[\d.]+", printed)
    assert re.search(r"\d+ checks, \d+ broken", printed)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tis", "--set", "algorithm.rollout_correction={token_weight = 'tis', tis_cap = 1.5}"], "; tis_cap = 1.5 "),
        (
            [
                "reference_kl",
                "--set",
                "algorithm.kl={place='loss', coefficient=0.3, estimator='k2', reference='start'}",
            ],
            "; kl_coefficient = 0.3, kl_estimator = 'k2' ",
        ),
        (["mine:loss", "--set", "algorithm.parameters={floor = 0.1, flor = 0.2}"], "; floor = 0.1, it does not take f"),
    ],
)
def test_a_part_is_tried_with_what_was_set(arguments: list[str], told: str, run: Run) -> None:
    code, printed = run("check-algorithm", *arguments)
    assert code == 0 and told in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mine.py:loss"], "'mine.py:loss' is a file. Remedy: write \"mine:loss\""),
        (["no_part"], "no part of an algorithm is named 'no_part'"),
        (["clip", "--kind", "advantage"], "no advantage 'clip'. Remedy: take one of"),
        (["none:loss"], "looked in "),
    ],
)
def test_what_the_command_refuses(arguments: list[str], told: str, run: Run) -> None:
    code, printed = run("check-algorithm", *arguments)
    assert code == 1 and told in " ".join(printed.split()) and "Traceback" not in printed
