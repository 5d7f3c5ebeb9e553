"""The command `hybridflow data convert`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hybridflow.errors import DataError


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
