"""The `hybridflow` command."""

from __future__ import annotations

import errno
import functools
import math
import signal
import sys
import time
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from hybridflow import __version__
from hybridflow.compiled_kernels import forget_empty_folder
from hybridflow.errors import HybridFlowError, notes_of, tell_interrupted
from hybridflow.observability.visible import visible
from hybridflow.recording.run_folder.file_mode import write_privately
from hybridflow.tools.options import ConfigFiles, Overrides, Resume

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130
SAME_INTERRUPT_S = 5.0
GUARDED = ("train", "sft", "generate", "logprobs", "export")
"""Commands that start Ray and its workers."""

app = typer.Typer(
    name="hybridflow",
    help="Long-context GRPO: Megatron-Core training and SGLang rollout in one Ray job, from a laptop to a cluster.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@functools.cache
def mount_commands() -> None:
    """Adds the commands of the other packages, once however often `main` is called in a process."""
    from hybridflow.data.commands import app as data_app
    from hybridflow.policy.commands import app as model_app
    from hybridflow.tools.algorithm_commands import mount as mount_algorithm
    from hybridflow.tools.commands import mount as mount_tools
    from hybridflow.tools.config_command import mount as mount_config
    from hybridflow.tools.judge_commands import mount as mount_judge
    from hybridflow.tools.score_commands import mount as mount_score
    from hybridflow.tools.show_commands import mount as mount_show
    from hybridflow.weights.commands import mount as mount_weights

    mount_show(data_app)
    app.add_typer(data_app, name="data")
    app.add_typer(model_app, name="model")
    mount_tools(app)
    mount_algorithm(app)
    mount_config(app)
    mount_judge(app)
    mount_score(app)
    mount_weights(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    context.obj = {"traceback": traceback}


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
def train(config: ConfigFiles, set_: Overrides = None, resume: Resume = False) -> None:
    """Train: warm-up, then GRPO with rollouts, rewards and weight publishing, into `<run.directory>/<run.name>`.

    \b
    hybridflow train --config configs/quickstart.toml
    hybridflow train --config configs/quickstart.toml --set train.num_steps=5 --set run.seed=1
    hybridflow train --config configs/quickstart.toml --resume

    Ctrl-C stops cleanly; --resume goes on from the last checkpoint with the numbers of an uninterrupted run.
    """
    from hybridflow.observability.log import configure
    from hybridflow.tools.train_start import start_training

    configure("driver", level="WARNING")
    try:
        start_training(config, set_ or [], resume=resume)
    except KeyboardInterrupt as interrupt:
        print(visible(tell_interrupted(interrupt, "nothing was started")), file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@app.command()
def check(config: ConfigFiles, set_: Overrides = None) -> None:
    """Find what would stop a training run later, without starting it: everything at once, each with a remedy.

    \b
    hybridflow check --config configs/quickstart.toml
    hybridflow check --config configs/quickstart.toml mine.toml --set train.layout.tp=2

    Keys and values; rows, golds and questions; the chat template on one row;
    one row scored with its gold and with an empty answer; one question to the
    judge; layout, window, memory and disk. Exit code: 0, or 1 with an error.
    """
    from hybridflow.observability.log import configure
    from hybridflow.preflight.report import report_run

    configure("driver", level="WARNING")
    try:
        num_errors = report_run(config, set_ or [])
    except KeyboardInterrupt:
        print("interrupted; not everything was checked", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if num_errors:
        raise typer.Exit(EXIT_ERROR)


def guarded_main() -> NoReturn:
    """Entry point: `main`, below a guardian where the command starts processes that must end with it."""
    if sys.argv[1:2] and sys.argv[1] in GUARDED and "--help" not in sys.argv:
        from hybridflow.guard.guardian import split_off

        try:
            split_off()
        except HybridFlowError as error:
            _tell(error)
            sys.exit(EXIT_ERROR)
    main()


def main() -> NoReturn:
    """Errors made for users are printed without a traceback; exit code 1, or 130 after Ctrl-C."""
    mount_commands()
    interrupt = _Interrupt()
    signal.signal(signal.SIGTERM, interrupt)
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not under nohup
            signal.signal(number, interrupt)
    write_privately()
    arguments = spread_values(sys.argv[1:], ("--config", "-c", "--set", "-s", "--show", "--judge-url", "--verifier"))
    try:
        app(args=arguments)
    except HybridFlowError as error:
        if "--traceback" in arguments:
            raise
        _tell(error)
        sys.exit(EXIT_ERROR)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP) or "--traceback" in arguments:
            raise
        path = visible(str(error.filename))[:200]
        print(f"error: {error.strerror}\n{path}: the system has no such path. Remedy: check it", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except SystemExit as end:
        if isinstance(getattr(end.__context__, "__cause__", None), KeyboardInterrupt):  # no command has told it
            print("interrupted", file=sys.stderr)
        raise
    finally:
        forget_empty_folder()
    sys.exit(0)


def _tell(error: HybridFlowError) -> None:
    Console(stderr=True).print(f"[bold red]error:[/] {type(error).__name__}", highlight=False)
    print("\n".join(visible(text) for text in (str(error), *notes_of(error))), file=sys.stderr)


def spread_values(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    """Lets `--set a=1 b=2` and `--config a.toml b.toml` mean what they say: one option, several values."""
    spread: list[str] = []
    current: str | None = None
    for argument in arguments:
        if argument.startswith("-"):
            current = argument if argument in names else None
            spread.append(argument)
        elif current is not None and spread[-1] != current:
            spread += [current, argument]
        else:
            spread.append(argument)
    return spread


class _Interrupt:
    """Handler of signals that raises KeyboardInterrupt; a terminal's Ctrl-C comes twice, once through the guardian."""

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, _signal: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last > SAME_INTERRUPT_S:
            self._last = now
            raise KeyboardInterrupt


if __name__ == "__main__":
    guarded_main()
