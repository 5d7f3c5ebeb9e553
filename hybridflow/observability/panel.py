"""The live panel: a DisplayState as rich renderables."""

from __future__ import annotations

from rich import box
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from hybridflow.observability.display_state import DisplayState, format_duration
from hybridflow.observability.visible import visible

PHASES = ("ROLLOUT", "TRAIN", "SYNC", "EVAL")


def render_start(state: DisplayState, now: float, spinner: Spinner) -> Table:
    """What a user sees before the first stage: what was done, what is going on and for how long."""
    start = Table.grid(padding=(0, 1))
    for message in list(state.messages)[:-1]:
        start.add_row("", Text(visible(message), style="dim"))
    present = state.messages[-1] if state.messages else "starting"
    start.add_row(spinner, Text(f"{visible(present)}   {format_duration(now - state.news_at)}"))
    if state.progress:
        start.add_row("", Text(visible(state.progress), style="dim"))
    return start


def render(state: DisplayState, now: float) -> Table:
    """The whole panel; a few lines high, as wide as the terminal allows."""
    panel = Table(
        box=box.ROUNDED, show_header=False, title=Text(visible(state.title)), title_justify="left", expand=True
    )
    panel.add_column(style="dim", no_wrap=True)
    panel.add_column(ratio=1)
    panel.add_row("stage", Text(visible(state.stage), style="bold"))
    panel.add_row("phase", _phases(state, now))
    if state.progress:
        panel.add_row("", Text(visible(state.progress), style="dim"))
    panel.add_row("step", _progress(state))
    for label, value in state.facts().items():
        panel.add_row(label, Text(visible(value)))
    panel.add_row("elapsed", Text(visible(_times(state, now))))
    if state.messages:
        panel.add_row("messages", Text(visible("\n".join(state.messages))))
    return panel


def _phases(state: DisplayState, now: float) -> Text:
    """The four phases in order, the present one marked; a phase of another name stands alone."""
    shown = PHASES if state.phase in PHASES or not state.phase else (*PHASES, state.phase)
    text = Text()
    for name in shown:
        text.append(f" {name} ", style="bold reverse" if name == state.phase else "dim")
    if state.phase:
        text.append(f"  {format_duration(now - state.phase_started_at)}", style="dim")
    return text


def _progress(state: DisplayState) -> Table:
    row = Table.grid(padding=(0, 1), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    bar = ProgressBar(total=max(1, state.total_steps), completed=state.next_step)
    row.add_row(f"{state.next_step}/{state.total_steps}", bar)
    return row


def _times(state: DisplayState, now: float) -> str:
    return f"{format_duration(now - state.started_at)}   eta {state.eta(now)}"
