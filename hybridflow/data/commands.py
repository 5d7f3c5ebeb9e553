"""`hybridflow data`: make and look at row files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.progress import track

from hybridflow.data.rows import load_rows, write_rows
from hybridflow.data.schema import Row
from hybridflow.data.synth import SynthSpec, generate_row
from hybridflow.data.synth.spec import Split
from hybridflow.errors import ConfigError, DataError

app = typer.Typer(name="data", help="Make and look at row files (DocQA-RL schema).", no_args_is_help=True)


class Tier(StrEnum):
    easy = "easy"
    hard = "hard"


class FileFormat(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"


@app.command()
def synth(
    output: Annotated[Path, typer.Option(help="Folder for train and test files; made if it does not exist.")],
    tier: Annotated[
        Tier, typer.Option(help="easy: word look-up for tiny models. hard: long reports and contracts.")
    ] = Tier.easy,
    doc_tokens: Annotated[int, typer.Option(help="Document length; in the hard tier 4 characters are a token.")] = 128,
    num_train: Annotated[int, typer.Option(help="Rows in the train file.")] = 1024,
    num_test: Annotated[int, typer.Option(help="Rows in the test file.")] = 256,
    num_records: Annotated[
        int, typer.Option(help="Records (easy), or issuers and agreements (hard), per document.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    file_format: Annotated[FileFormat, typer.Option("--format", help="File format.")] = FileFormat.parquet,
) -> None:
    """Generate documents with questions and exact gold answers.

    The easy tier is what a 160K-parameter model learns in a minute on a laptop. The hard tier reads like financial
    reports and bundles of contracts, at any length, with look-up, two-hop, arithmetic and four-choice questions.

    Example: hybridflow data synth --tier hard --doc-tokens 20000 --num-train 500 --num-test 50 --output runs/reports
    """
    try:
        spec = SynthSpec(
            tier=tier.value, doc_tokens=doc_tokens, num_records=num_records, num_train=num_train, num_test=num_test
        )
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc'])) or 'size'}: {item['msg']}" for item in error.errors()]
        raise ConfigError("cannot generate this data set: " + "; ".join(problems)) from error
    console = Console(stderr=True)
    counts: dict[Split, int] = {"train": num_train, "test": num_test}
    for split, count in counts.items():
        indices = track(range(count), description=f"{split} rows", console=console, disable=not console.is_terminal)
        rows = [generate_row(spec, split, seed, index) for index in indices]
        path = output / f"{split}.{file_format.value}"
        write_rows(path, rows)
        typer.echo(f"{path}: {count} rows")


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A .parquet or .jsonl file of rows.")],
    row: Annotated[int, typer.Option(help="Which row, counted from 0.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Print the whole prompt, however long.")] = False,
) -> None:
    """Print one row: its prompt, its gold answer and where they come from.

    Example: hybridflow data show runs/reports/train.parquet --row 3
    """
    rows = load_rows(path)
    if not 0 <= row < len(rows):
        raise DataError(f"{path}: no row {row}; it has {len(rows)} rows, 0 .. {len(rows) - 1}")
    _print_row(Console(), rows[row], row, len(rows), full)


def _print_row(console: Console, row: Row, index: int, num_rows: int, full: bool) -> None:
    for message in row.prompt:
        content = message["content"] if full else _shorten(message["content"])
        console.print(Panel(escape(content), title=escape(message["role"]), title_align="left"))
    console.print(f"[bold]gold answer[/bold]  {escape(row.reward_model.ground_truth)}")
    console.print(f"[bold]data source[/bold]  {escape(row.data_source)}  ({escape(row.ability)})")
    console.print(
        f"[bold]row[/bold]          {index} of {num_rows}, {sum(len(m['content']) for m in row.prompt)} characters"
    )
    for name, value in row.extra_info.items():
        console.print(f"[dim]{escape(name)}[/dim]  {escape(str(value))}")


def _shorten(text: str, head: int = 1200, tail: int = 600) -> str:
    """Beginning and end of a long text: the question stands at the end."""
    left_out = len(text) - head - tail
    return (
        text
        if left_out <= 0
        else f"{text[:head]}\n\n[... {left_out} characters; --full prints them ...]\n\n{text[-tail:]}"
    )
