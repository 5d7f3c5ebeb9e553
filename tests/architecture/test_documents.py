"""Documents keep their sizes, lead somewhere, and the table of modules is that of the code."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.architecture.module_table import TABLE, build_table
from tests.architecture.modules import ROOT, read_modules

KB = 1024
TOPICS = (
    *("layouts", "rollout", "weights", "rewards", "algorithms", "checkpoints", "determinism", "failures", "cpu"),
    *("commands", "presets", "routing", "own-algorithm", "sampling", "kl-and-aepo", "curriculum"),
)
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "docker/README.md"]


def test_the_table_of_modules_is_up_to_date() -> None:
    assert TABLE.read_text() == build_table(read_modules()), "run `make modules`"


def test_architecture_fits_on_a_few_pages() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_bytes()) <= 12 * KB


@pytest.mark.parametrize("topic", TOPICS)
def test_a_topic_is_neither_a_stub_nor_a_book(topic: str) -> None:
    assert 3 * KB <= len((ROOT / f"docs/{topic}.md").read_bytes()) <= 6 * KB


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_curve_of_a_run_goes_through_its_numbers(tmp_path: Path) -> None:
    """0 is at y = 186 and 1 at y = 14; step 2, the last, at x = 628."""
    lines = [{"step": 0, "eval/accuracy": 0.25}, {"step": 1, "reward/mean": 0.5}, {"step": 2, "reward/mean": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    program = runpy.run_path(str(ROOT / "docs/quickstart_curve.py"))
    drawn = program["draw"](*program["read_curves"](tmp_path))
    assert 'points="336.0,100.0 628.0,14.0"' in drawn
    assert 'cx="44.0" cy="143.0"' in drawn and "0.250 after 0 steps" in drawn


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document: Path) -> None:
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|md|sh|toml|json))`", document.read_text()))
    assert [name for name in sorted(named) if not any((ROOT / top / name).exists() for top in ("", "hybridflow"))] == []


def test_every_decision_has_a_date_and_a_reason() -> None:
    entries = re.split(r"(?m)^- ", (ROOT / "docs/decisions.md").read_text())[1:]
    assert len(entries) > 60
    for entry in entries:
        found = re.match(r"2026-1[12]-\d\d \*\*.+?\*\*(.+)", entry, re.DOTALL)
        assert found and len(found[1]) > 20, entry
