"""`hybridflow data`: make row files. `tools.show_commands` adds the command that looks at them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from hybridflow.data.convert_command import convert
from hybridflow.errors import ConfigError

if TYPE_CHECKING:
    from hybridflow.data.synth.spec import Split

app = typer.Typer(name="data", help="Make and look at row files (DocQA-RL schema).", no_args_is_help=True)


app.command()(convert)


@app.callback()
def common() -> None:
    """Make and look at row files (DocQA-RL schema)."""


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
    num_train: Annotated[int, typer.Option(min=1, help="Rows in the train file.")] = 1024,
    num_test: Annotated[int, typer.Option(min=1, help="Rows in the test file.")] = 256,
    num_records: Annotated[
        int, typer.Option(help="Records (easy), or issuers and agreements (hard), per document.")
    ] = 8,
    seed: Annotated[int, typer.Option(max=2**63 - 1, help="The same seed gives the same files.")] = 0,
    file_format: Annotated[FileFormat, typer.Option("--format", help="File format.")] = FileFormat.parquet,
) -> None:
    """Generate documents with questions and exact gold answers.

    The easy tier is what a 160K-parameter model learns in a minute on a laptop. The hard tier reads like financial
    reports and bundles of contracts, at any length, with look-up, two-hop, arithmetic and four-choice questions.

    Example: hybridflow data synth --tier hard --doc-tokens 20000 --num-train 500 --num-test 50 --output runs/reports
    """
    from hybridflow.data.rows import write_rows
    from hybridflow.data.synth import SynthSpec, generate_row

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
