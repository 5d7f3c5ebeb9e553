"""`hybridflow data show`: one row of a file, and how a model would be given it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from hybridflow.errors import DataError
from hybridflow.observability.visible import visible

if TYPE_CHECKING:
    from hybridflow.data.schema import Row


def mount(app: typer.Typer) -> None:
    """Adds the command to `app`, the one of `hybridflow data`."""
    app.command()(show)


def show(
    path: Annotated[Path, typer.Argument(help="A file of rows, e.g. .parquet or .jsonl.")],
    row: Annotated[int, typer.Option(help="Which row, counted from 0.")] = 0,
    full: Annotated[bool, typer.Option("--full", help="Print the whole prompt, however long.")] = False,
    chat: Annotated[
        Path | None,
        typer.Option(help="Model folder: print the row as its chat template writes it, and what of it is learnt."),
    ] = None,
) -> None:
    """Print one row: its prompt, its gold answer and where they come from.

    \b
    hybridflow data show runs/reports/train.parquet --row 3
    hybridflow data show demonstrations.jsonl --row 3 --chat configs/models/tiny

    With --chat the row is one of `sft`: what the model reads is dim and what it learns to write is green or, where
    the output is no terminal, each part is under a line that says which it is. A line ends with the sign for its end.
    """
    if chat is not None:
        _show_chat(Console(soft_wrap=True), path, row, chat, full)
        return
    from hybridflow.data.rows import load_rows

    rows = load_rows(path)
    _check_number(path, row, len(rows))
    _print_row(Console(), rows[row], row, len(rows), full)


def _check_number(path: Path, row: int, num_rows: int) -> None:
    if not 0 <= row < num_rows:
        raise DataError(f"{path}: no row {row}; it has {num_rows} rows, 0 .. {num_rows - 1}")


def _show_chat(console: Console, path: Path, row: int, model: Path, full: bool) -> None:
    from hybridflow.data.conversation import split_conversation
    from hybridflow.data.demonstrations import read_conversations
    from hybridflow.policy.load import load_tokenizer

    tokenizer = load_tokenizer(model, f"--chat {model}")
    conversations = read_conversations(path)
    _check_number(path, row, len(conversations))
    where, messages = conversations[row]
    try:
        conversation = split_conversation(tokenizer, messages, f"row {row}")
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    for segment in conversation.segments:
        name, style = ("learnt", "bold green") if segment.is_learnt else ("read", "dim")
        text = segment.text if full or segment.is_learnt else _shorten(segment.text)
        shown = visible(text).replace("\n", "\u21b5\n")
        if console.is_terminal:
            console.print(shown, style=style, markup=False, highlight=False, end="")
        else:
            console.print(f"--- {name}, {len(segment.token_ids)} tokens", markup=False, highlight=False)
            console.print(shown, markup=False, highlight=False)
    counts = {
        kind: sum(len(s.token_ids) for s in conversation.segments if s.is_learnt is kind) for kind in (True, False)
    }
    console.print(f"--- {counts[True]} tokens learnt, {counts[False]} read", markup=False, highlight=False)
    if conversation.num_empty_thoughts:
        console.print("the generation prompt opens the model's thinking; the answer closes it empty", highlight=False)
    if conversation.num_endless_answers:
        console.print("the chat template puts no special token behind an answer: it does not learn to stop")
    if conversation.num_context_answers:
        console.print(
            f"{conversation.num_context_answers} earlier answers are read and not learnt: the chat template writes "
            "them differently once later messages follow",
            highlight=False,
        )


def _print_row(console: Console, row: Row, index: int, num_rows: int, full: bool) -> None:
    for message in row.prompt:
        content = message["content"] if full else _shorten(message["content"])
        console.print(
            Panel(escape(visible(content)), title=escape(visible(message["role"], keep="")), title_align="left")
        )
    console.print(f"[bold]gold answer[/bold]  {escape(visible(str(row.reward_model.ground_truth)))}")
    console.print(f"[bold]data source[/bold]  {escape(visible(f'{row.data_source}  ({row.ability})', keep=''))}")
    console.print(
        f"[bold]row[/bold]          {index} of {num_rows}, {sum(len(m['content']) for m in row.prompt)} characters"
    )
    for name, value in row.extra_info.items():
        console.print(f"[dim]{escape(visible(name, keep=''))}[/dim]  {escape(visible(str(value)))}")


def _shorten(text: str, head: int = 1200, tail: int = 600) -> str:
    """Beginning and end of a long text: the question stands at the end."""
    left_out = len(text) - head - tail
    return (
        text
        if left_out <= 0
        else f"{text[:head]}\n\n[... {left_out} characters; --full prints them ...]\n\n{text[-tail:]}"
    )
