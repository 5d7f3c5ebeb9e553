"""The commands `hybridflow logprobs`, `export` and `sft`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EXIT_INTERRUPTED = 130
QUIET_S = 10.0
"""Longest time between two progress lines where there is no terminal."""

TP = Annotated[int, typer.Option("--tp", help="Tensor parallel: ranks that share every matrix.")]
PP = Annotated[int, typer.Option("--pp", help="Pipeline parallel: ranks that share the layers.")]
CP = Annotated[int, typer.Option("--cp", help="Context parallel: ranks that share the tokens of each row.")]
DP = Annotated[int, typer.Option("--dp", help="Data parallel: copies of the model, each with its own rows.")]
EP = Annotated[int, typer.Option("--ep", help="Expert parallel: ranks that share the experts (MoE).")]
ETP = Annotated[int, typer.Option("--etp", help="Expert tensor parallel: ranks that share an expert's matrices (MoE).")]
SP = Annotated[
    bool, typer.Option("--sequence-parallel", help="Cut activations along the tokens; MoE with --tp needs it.")
]
Threads = Annotated[int, typer.Option(help="CPU threads of each worker.")]


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command()(logprobs)
    app.command()(export)
    app.command()(sft)


def logprobs(
    model: Annotated[Path, typer.Option(help="Hugging Face directory: config, safetensors and, for texts, tokenizer.")],
    input: Annotated[Path, typer.Option(help='JSON lines, each {"input_ids": [...]} or {"text": "..."}.')],
    output: Annotated[Path, typer.Option(help='JSON lines, each {"logprobs": [...]}, in the order of the input.')],
    tp: TP = 1,
    pp: PP = 1,
    cp: CP = 1,
    dp: DP = 1,
    ep: EP = 1,
    etp: ETP = 1,
    sequence_parallel: SP = False,
    dtype: Annotated[Dtype, typer.Option(help="Precision of weights and computation.")] = Dtype.float32,
    fp32_head: Annotated[bool, typer.Option("--fp32-head", help="With bfloat16: compute logits in float32.")] = False,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it.")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens computed at a time per rank; default 16384, or the longest row.")
    ] = None,
    num_threads: Threads = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where the output is there.")] = False,
) -> None:
    """Log-probability of each next token of each row, computed by Megatron.

    \b
    hybridflow logprobs --model Qwen3-8B --input rows.jsonl --output scores.jsonl --tp 2 --pp 2
    hybridflow logprobs --model Qwen3-8B --input rows.jsonl --output scores.jsonl --cp 4 --dtype bfloat16 --fp32-head

    A row of n tokens gives n - 1 numbers: number i is log p(token i+1 | tokens 0 .. i). tp x pp x cp x dp workers are
    started. All rows are checked first; a row longer than the model's window is an error that names it. Interrupted,
    the same command goes on after the last whole line of the output.
    """
    from hybridflow.config.sections import WorkerSection
    from hybridflow.observability.log import configure
    from hybridflow.tools.logprobs import LogprobsJob, write_logprobs

    configure("driver", level="WARNING")
    worker = WorkerSection(
        layout=_layout(tp=tp, pp=pp, cp=cp, dp=dp, ep=ep, etp=etp, sequence_parallel=sequence_parallel),
        num_threads=num_threads,
        fp32_head=fp32_head,
    )
    job = LogprobsJob(model, input, output, worker, max_tokens, dtype.value, temperature, overwrite)
    with _interruptible("the same command goes on where it stopped"), _RowProgress() as progress:
        written = write_logprobs(job, progress)
    typer.echo(f"{output}: {written} rows written" if written else f"{output}: complete already, nothing to do")


def export(
    checkpoint: Annotated[
        Path, typer.Option(help="Folder under <run>/checkpoints, e.g. runs/a/checkpoints/rl-000030.")
    ],
    output: Annotated[Path, typer.Option(help="Hugging Face directory to write.")],
    tp: TP = 1,
    pp: PP = 1,
    ep: EP = 1,
    etp: ETP = 1,
    sequence_parallel: SP = False,
    num_threads: Threads = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write the weights of a checkpoint as a Hugging Face directory: safetensors, config, tokenizer.

    \b
    hybridflow export --checkpoint runs/quickstart/checkpoints/rl-000030 --output exported
    hybridflow export --checkpoint runs/big/checkpoints/rl-000100 --output exported --tp 4 --pp 2

    The checkpoint may come from any layout; --tp, --pp and --ep only say over how many workers to spread the model
    here. Every file is checked against its checksum first.
    """
    from hybridflow.config.sections import WorkerSection
    from hybridflow.observability.log import configure
    from hybridflow.tools.export import export_checkpoint

    configure("driver", level="WARNING")
    worker = WorkerSection(
        layout=_layout(tp=tp, pp=pp, ep=ep, etp=etp, dp=-(-ep * etp // tp), sequence_parallel=sequence_parallel),
        num_threads=num_threads,
    )
    with _interruptible("the output is not complete"):
        export_checkpoint(checkpoint, output, worker, overwrite=overwrite, note=_note)
    typer.echo(f"{output}: model of {checkpoint}")


def sft(
    config: Annotated[
        list[Path],
        typer.Option("--config", "-c", help="TOML file; give several to lay them over each other, left to right."),
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="key.path=value; may be repeated. Wins over files.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of this name.")] = False,
) -> None:
    """Train on demonstrations: the warm-up before RL, as a run of its own in `<run.directory>/<run.name>`.

    \b
    hybridflow sft --config configs/sft.toml --set data.path=answers.parquet model.path=Qwen3-8B
    hybridflow sft --config configs/sft.toml --set train.layout.tp=2 train.num_steps=100
    hybridflow sft --config configs/sft.toml --resume

    Rows are conversations, {"messages": [...]}, or DocQA-RL rows with a column `response` (else the gold answer is
    imitated). Only assistant turns are learnt. The loss is the mean over conversations of each one's mean over its
    tokens; train.loss = "token_mean" weighs tokens alike. The model is written to hf/ at the end.
    """
    from hybridflow.config.load import load_config
    from hybridflow.observability.log import configure
    from hybridflow.tools.sft_config import SftConfig

    configure("driver", level="WARNING")
    resolved = load_config(config, set_ or [], SftConfig)
    with _interruptible("--resume continues from the last checkpoint"):
        from hybridflow.tools.sft import run_sft  # after the configuration is known to be valid: this takes seconds

        summary = run_sft(resolved, resume=resume)
    typer.echo(f"{summary['hf']}: {summary['num_steps']} steps on {summary['num_demonstrations']} demonstrations")


def _layout(**sizes: Any) -> Any:
    """A checked layout section. ConfigError naming the option, its value and the rule."""
    from hybridflow.config.sections import LayoutSection
    from hybridflow.errors import ConfigError

    for name, size in sizes.items():
        if size < 1 and not isinstance(size, bool):
            raise ConfigError(f"--{name} {size}: a parallel size must be at least 1; use 1 for none")
    return LayoutSection(**sizes)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _interruptible(remedy: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _note(f"interrupted; {remedy}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


class _RowProgress:
    """A bar on a terminal, else a line each few seconds; on standard error."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console) if console.is_terminal else None
        self._task = self._bar.add_task("rows", total=None) if self._bar else None
        self._last_line = 0.0

    def __call__(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif done == total or time.monotonic() - self._last_line > QUIET_S:
            self._last_line = time.monotonic()
            _note(f"rows {done}/{total}")

    def __enter__(self) -> _RowProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
