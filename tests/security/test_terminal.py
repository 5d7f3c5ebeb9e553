"""Nothing that is read acts on the terminal: data, column names, configuration keys and values, logs and errors."""

from __future__ import annotations

import io
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybridflow import cli
from hybridflow.observability.log import configure

ROOT = Path(__file__).parents[2]
WICKED = "a\x1b[2J\x1b]0;owned\x07b\x9b31m\u202edetrevni\u2066\u200b\rc\x7f"
ROW = {
    "data_source": f"s{WICKED}",
    "prompt": [{"role": "user", "content": f"What?{WICKED}"}],
    "ability": "doc-qa",
    "reward_model": {"style": "rule", "ground_truth": f"yen{WICKED}"},
    "extra_info": {f"k{WICKED}": f"v{WICKED}"},
}

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; returns all that it shows."""

    def run_command(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["hybridflow", *map(str, arguments)])
        with pytest.raises(SystemExit):
            cli.main()
        output = capsys.readouterr()
        return output.out + output.err

    return run_command


def assert_harmless(shown: str) -> None:
    acting = {character for character in shown if not character.isprintable()} - {"\n", "\t"}
    assert not acting, f"{acting} in {shown!r}"
    assert "Traceback" not in shown


def test_a_row_is_shown_with_what_it_holds(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    shown = run("data", "show", path)
    assert_harmless(shown)
    for what in ("What?a\\x1b[2J", "yena\\x1b[2J", "sa\\x1b[2J", "ka\\x1b[2J", "va\\x1b[2J", "\\u202edetrevni"):
        assert what in shown.replace("\n", "")


def test_column_names_in_an_error(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({f"question{WICKED}": ["q"], f"answer{WICKED}": ["a"]}), path)
    shown = run("data", "show", path)
    assert shown.startswith("error: DataError")
    assert_harmless(shown)


@pytest.mark.parametrize(
    "row",
    [
        ROW | {"ability": 7},
        ROW | {"reward_model": {"style": f"r{WICKED}", "ground_truth": 3.5}},
        ROW | {"prompt": [{"role": f"u{WICKED}", "content": f"c{WICKED}"}]},
        ROW | {"prompt": f"p{WICKED}"},
        {f"q{WICKED}": 1},
    ],
)
def test_values_in_an_error(run: Run, tmp_path: Path, row: object) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert_harmless(run("data", "show", path))


@pytest.mark.parametrize(
    "text",
    [
        f'["{json.dumps(WICKED)[1:-1]}"]\na = 1\n',
        f"[run]\nname = {json.dumps(WICKED)}\n",
        f"[run]\n{json.dumps(WICKED)} = {json.dumps(WICKED)}\n",
        f"[train]\nlr_schedule = {json.dumps(WICKED)}\n",
        "[run]\nname = \x1b[2J\u202e\n",
    ],
)
def test_keys_and_values_of_a_configuration_in_an_error(run: Run, tmp_path: Path, text: str) -> None:
    path = tmp_path / "wicked.toml"
    path.write_text(text.replace("\\u007f", "\u200b"))
    shown = run("train", "--config", ROOT / "configs/quickstart.toml", path)
    assert "error: ConfigError" in shown
    assert_harmless(shown)


def test_assignments_in_an_error(run: Run) -> None:
    base = ("train", "--config", ROOT / "configs/quickstart.toml", "--set")
    for assignment in (f"run.{WICKED}=1", f"run.name={WICKED}", WICKED, f"{WICKED}.a=1"):
        assert_harmless(run(*base, assignment))


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 300 + "/b", "\udcff", WICKED])
def test_paths_that_cannot_be(run: Run, tmp_path: Path, name: str) -> None:
    """Also those that the system refuses as too long, or that are no text."""
    base = ("train", "--config", ROOT / "configs/quickstart.toml", "--set")
    for shown in (
        run("data", "show", tmp_path / f"{name}.jsonl"),
        run("train", "--config", tmp_path / name),
        run(*base, f"run.directory={json.dumps(str(tmp_path / name) + chr(0))}"),
        run("export", "--checkpoint", tmp_path / name, "--output", tmp_path / "out"),
    ):
        assert_harmless(shown)
        assert "error: " in shown and len(shown) < 20_000


def test_a_run_of_which_the_folder_cannot_be(run: Run, tmp_path: Path) -> None:
    for directory, name in ((tmp_path / ("a" * 5000), "b"), (tmp_path, "b" * 300)):
        arguments = (f"run.directory={json.dumps(str(directory))}", f"run.name={name}")
        shown = run("train", "--config", ROOT / "configs/quickstart.toml", "--set", *arguments)
        assert_harmless(shown)
        assert "error: ConfigError" in shown


def test_a_resolved_configuration_stays_json(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "wicked.toml"
    path.write_text(
        f'[model]\npath = "{ROOT / "configs/models/tiny"}"\n[tracking]\nwandb_project = "a\\u202eb\\u001b中"\n'
    )
    shown = run("config", "--show", ROOT / "configs/quickstart.toml", path)
    assert_harmless(shown)
    assert json.loads(shown)["tracking"]["wandb_project"] == "a\u202eb\x1b中"


def test_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("reward")
    logging.getLogger("hybridflow.test").warning("the judge answered %s", WICKED)
    assert_harmless(stream.getvalue())
    assert "the judge answered a\\x1b[2J" in stream.getvalue()
