"""The commands `hybridflow data convert` and `synth`, which make row files. `tools.show_commands` adds `show`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from hybridflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hybridflow.data.synth.spec import Split


class Ability(StrEnum):
    qa = "doc-qa"
    math = "doc-math"
    mc = "doc-mc"


def convert(
    path: Annotated[Path, typer.Argument(help="A .csv, .tsv, .json, .jsonl or .parquet file; a folder; a pattern.")],
    output: Annotated[Path, typer.Option(help="File to write: .parquet or .jsonl.")],
    columns: Annotated[
        str, typer.Option(help="question=COLUMN,answer=COLUMN,document=COLUMN,choices=COLUMN; a.b: key b within a.")
    ] = "",
    ability: Annotated[
        Ability, typer.Option(help="doc-qa: text. doc-math: a number. doc-mc: a choice A to D.")
    ] = Ability.qa,
    data_source: Annotated[str, typer.Option(help="Name of the source; default: that of the file.")] = "",
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Leave out rows that cannot be used.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output where it is there.")] = False,
) -> None:
    """Make rows of a file with other columns: document, question and answer become prompt and gold.

    The prompt is the recipe's: the document between <text> and </text>, the question, and the sentence in which to
    answer, which verifiers look for. A list of answers means that any of them is right.

    Example: hybridflow data convert squad.json --columns question=question,answer=answers.text,document=context
    --output rows.parquet
    """
    from hybridflow.data.convert import Conversion, convert_rows, read_mapping  # these load pyarrow
    from hybridflow.data.records import refuse_problems
    from hybridflow.data.rows import write_rows
    from hybridflow.data.schema import BadRow, Row

    if output.exists() and not overwrite:
        raise DataError(f"--output {output} is there already. Remedy: name another file, or give --overwrite")
    found = convert_rows(Conversion(path, read_mapping(columns), ability.value, data_source))
    rows = [row for row in found if isinstance(row, Row)]
    problems = [row.why for row in found if isinstance(row, BadRow)]
    if not drop_bad or not rows:
        refuse_problems(path, problems, len(found))
    write_rows(output, rows)
    left_out = f"; {len(problems)} left out, the first: {problems[0]}" if problems else ""
    typer.echo(f"{output}: {len(rows)} rows{left_out}")


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
    min_doc_tokens: Annotated[
        int | None, typer.Option(help="Shortest document of the train file, whose lengths are then spread evenly.")
    ] = None,
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
            tier=tier.value,
            doc_tokens=doc_tokens,
            min_doc_tokens=min_doc_tokens,
            num_records=num_records,
            num_train=num_train,
            num_test=num_test,
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
