"""The commands `hybridflow data convert` and `synth`, which make row files. `tools.show_commands` adds `show`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import track

from hybridflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hybridflow.data.synth.spec import Split, SynthSpec

QUIET_S = 10.0
"""Longest time between two lines of progress where there is no terminal."""


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
    long = "long"


class FileFormat(StrEnum):
    parquet = "parquet"
    jsonl = "jsonl"


@app.command()
def synth(
    output: Annotated[Path, typer.Option(help="Folder for train and test files; made if it does not exist.")],
    tier: Annotated[
        Tier,
        typer.Option(
            help="easy: word look-up for tiny models. hard: long reports and contracts. long: bundles of several "
            "documents, questions across them."
        ),
    ] = Tier.easy,
    doc_tokens: Annotated[
        int,
        typer.Option(
            help="Document length (long: of the whole prompt); 4 characters are a token but in the easy tier."
        ),
    ] = 128,
    min_doc_tokens: Annotated[
        int | None, typer.Option(help="Shortest document of the train file, whose lengths are then spread evenly.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Model folder: lengths of the long tier are in tokens of its tokenizer.json."),
    ] = None,
    num_train: Annotated[int, typer.Option(min=1, help="Rows in the train file.")] = 1024,
    num_test: Annotated[int, typer.Option(min=1, help="Rows in the test file.")] = 256,
    num_records: Annotated[
        int, typer.Option(help="Records (easy) or issuers and agreements (hard) of a document; documents (long).")
    ] = 8,
    seed: Annotated[int, typer.Option(max=2**63 - 1, help="The same seed gives the same files.")] = 0,
    file_format: Annotated[FileFormat, typer.Option("--format", help="File format.")] = FileFormat.parquet,
) -> None:
    """Generate documents with questions and exact gold answers.

    The easy tier is what a 160K-parameter model learns in a minute on a laptop. The hard tier reads like financial
    reports and bundles of contracts, at any length, with look-up, two-hop, arithmetic and four-choice questions. The
    long tier has bundles of several documents: two hops and arithmetic go from one to another.

    \b
    Example: hybridflow data synth --tier hard --doc-tokens 20000 --num-train 500 --num-test 50 --output runs/reports
    The third phase of a curriculum, 1,600 rows of 60K to 120K tokens:
    hybridflow data synth --tier long --min-doc-tokens 60000 --doc-tokens 120000 --num-train 1600 --num-test 100
      --tokenizer MODEL_FOLDER --output runs/long
    """
    from hybridflow.data.rows import stream_rows
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
        raise ConfigError(f"cannot generate this data set: {_tell_problems(error)}") from error
    if tokenizer is not None:
        spec = _in_tokens_of(tokenizer, spec, seed)
    counts: dict[Split, int] = {"train": num_train, "test": num_test}
    for split, count in counts.items():
        rows = (generate_row(spec, split, seed, index) for index in _followed(split, count))
        path = output / f"{split}.{file_format.value}"
        typer.echo(f"{path}: {stream_rows(path, rows)} rows")


def _tell_problems(error: ValidationError) -> str:
    """Each key and what is wrong with it."""
    return "; ".join(
        "".join(f"{key}: " for key in item["loc"]) + item["msg"].removeprefix("Value error, ")
        for item in error.errors()
    )


def _in_tokens_of(folder: Path, spec: SynthSpec, seed: int) -> SynthSpec:
    """The same lengths in tokens of a model. Raises ConfigError for a tier that does not count so."""
    from hybridflow.data.synth.measure import measure_chars

    if spec.tier != "long":
        raise ConfigError(
            f"--tokenizer {folder} with --tier {spec.tier}: only the long tier has lengths in a model's tokens"
        )
    chars = measure_chars(folder, spec, seed)
    typer.echo(f"{chars:.3f} characters are a token of {folder}", err=True)
    return spec.model_copy(update={"chars_per_token": chars})


def _followed(split: str, count: int) -> Iterator[int]:
    """Numbers of rows, with a bar on a terminal, else a line each ten seconds."""
    console = Console(stderr=True)
    numbers = track(range(count), description=f"{split} rows", console=console, disable=not console.is_terminal)
    last = time.monotonic()
    for number in numbers:
        if not console.is_terminal and time.monotonic() - last > QUIET_S:
            last = time.monotonic()
            typer.echo(f"{time.strftime('%H:%M:%S')} {split} rows {number}/{count}", err=True)
        yield number
