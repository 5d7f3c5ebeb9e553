"""The commands `hybridflow logprobs`, `generate`, `export` and `sft`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hybridflow.errors import tell_interrupted
from hybridflow.recording.run_folder.disk import explain_full
from hybridflow.tools.options import CP, DP, EP, ETP, PP, SP, TP, ConfigFiles, LayoutRequest, Overrides, Resume, Threads
from hybridflow.tools.progress import RowProgress, note

EXIT_INTERRUPTED = 130
GOES_ON = "the same command goes on where it stopped"


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class ReferenceDtype(StrEnum):
    """Adds a precision that is for comparison."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float64 = "float64"


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command()(logprobs)
    app.command()(generate)
    app.command()(export)
    app.command()(sft)


def logprobs(
    model: Annotated[Path, typer.Option(help="Hugging Face directory: config, safetensors and, for texts, tokenizer.")],
    input: Annotated[
        Path,
        typer.Option(
            help="JSON lines or Parquet, rows with input_ids, text or messages, or the rows that training reads."
        ),
    ],
    output: Annotated[Path, typer.Option(help='JSON lines, each {"logprobs": [...]}, in the order of the input.')],
    tp: TP = 1,
    pp: PP = 1,
    cp: CP = 1,
    dp: DP = None,
    ep: EP = 1,
    etp: ETP = 1,
    sequence_parallel: SP = None,
    dtype: Annotated[
        ReferenceDtype, typer.Option(help="Precision of weights and computation; float64 gives reference values.")
    ] = ReferenceDtype.float32,
    fp32_head: Annotated[bool, typer.Option("--fp32-head", help="With bfloat16: compute logits in float32.")] = False,
    temperature: Annotated[float, typer.Option(help="Logits are divided by it.")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens computed at a time per rank; default 16384, or the longest row.")
    ] = None,
    num_threads: Threads = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again where the output is there.")] = False,
) -> None:
    """Log-probability of each next token of each row, computed by Megatron.

    \b
    hybridflow logprobs --model Qwen3-8B --input a.jsonl --output b.jsonl --tp 2
    hybridflow logprobs --model Qwen3-8B --input a.jsonl --output b.jsonl --cp 4
    hybridflow logprobs --model 30B-A3B --input a.jsonl --output b.jsonl --ep 8

    A row of n tokens gives n - 1 numbers: number i is
    log p(token i+1 | tokens 0 .. i). tp x pp x cp x dp workers are started,
    on GPUs where there are some, else on the CPU.

    Model and rows are checked before any worker starts. Interrupted, the same
    command goes on after the last whole line of the output.
    """
    from hybridflow.observability.log import configure

    configure("driver", level="WARNING")
    layout = LayoutRequest(tp, pp, cp, dp, ep, etp, sequence_parallel)
    with interruptible(GOES_ON, output):
        from hybridflow.tools.logprobs import LogprobsJob, write_logprobs  # this takes seconds

        job = LogprobsJob(
            model, input, output, layout, num_threads, max_tokens, dtype.value, fp32_head, temperature, overwrite
        )
        with RowProgress() as progress:
            written = write_logprobs(job, progress)
    typer.echo(f"{output}: {written} rows written" if written else f"{output}: complete already, nothing to do")


def generate(
    model: Annotated[Path, typer.Option(help="Hugging Face directory: config, safetensors and tokenizer.")],
    prompts: Annotated[
        Path,
        typer.Option(
            help="JSON lines or Parquet, rows with text, messages or input_ids, or the rows that training reads, with "
            "text or messages under prompt."
        ),
    ],
    output: Annotated[
        Path, typer.Option(help='JSON lines, each {"row": i, "completions": [...]}; `score` reads them.')
    ],
    num_completions: Annotated[int, typer.Option("--num-completions", "-n", help="Completions of each prompt.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 512,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling; 1 for none.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="A text that ends a completion; may be repeated.")] = None,
    seed: Annotated[int, typer.Option(help="Completions follow from it, the row and the place in the row.")] = 0,
    engines: Annotated[int, typer.Option(help="SGLang engines, side by side.")] = 1,
    tp: Annotated[int, typer.Option("--tp", help="Tensor parallel: ranks of each engine.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Precision of weights and computation.")] = Dtype.float32,
    kv_cache_tokens: Annotated[
        int | None, typer.Option(help="Size of each engine's KV pool; default: as memory allows.")
    ] = None,
    num_threads: Threads = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again where the output is there.")] = False,
) -> None:
    """Completions of each prompt, decoded by the engines that training uses.

    \b
    hybridflow generate --model Qwen3-8B --prompts rows.jsonl --output out.jsonl
    hybridflow generate --model Qwen3-8B --prompts rows.jsonl --output out.jsonl -n 8 --temperature 0.7 --engines 4
    hybridflow generate --model Qwen3-32B --prompts rows.jsonl --output out.jsonl --tp 4 --dtype bfloat16

    The completions of a prompt go to one engine, which computes the prompt once.
    An engine that dies is started again, and nothing is lost.
    Interrupted, the same command goes on after the last whole line of the output.
    """
    from hybridflow.observability.log import configure

    configure("driver", level="WARNING")
    with interruptible(GOES_ON, output):
        from hybridflow.tools.generate import GenerateJob, write_completions  # this takes seconds
        from hybridflow.types import SamplingParams

        job = GenerateJob(
            model=model,
            prompts=prompts,
            output=output,
            num_completions=num_completions,
            sampling=SamplingParams(
                temperature=temperature, max_new_tokens=max_new_tokens, top_p=top_p, stop=stop or []
            ),
            seed=seed,
            engines=engines,
            tp=tp,
            num_threads=num_threads,
            dtype=dtype.value,
            kv_cache_tokens=kv_cache_tokens,
            overwrite=overwrite,
        )
        with RowProgress() as progress:
            written = write_completions(job, progress)
    typer.echo(f"{output}: {written} rows written" if written else f"{output}: complete already, nothing to do")


def export(
    checkpoint: Annotated[
        Path, typer.Option(help="Folder under <run>/checkpoints, e.g. runs/a/checkpoints/rl-000030.")
    ],
    output: Annotated[Path, typer.Option(help="Hugging Face directory to write.")],
    tp: TP = 1,
    pp: PP = 1,
    dp: DP = None,
    ep: EP = 1,
    etp: ETP = 1,
    sequence_parallel: SP = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the weights; default: that of the model which training began with.")
    ] = None,
    num_threads: Threads = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write the weights of a checkpoint as a Hugging Face directory: safetensors, config, tokenizer.

    \b
    hybridflow export --checkpoint runs/a/checkpoints/rl-000030 --output hf
    hybridflow export --checkpoint runs/a/checkpoints/rl-000030 --output hf --tp 4

    The checkpoint may come from any layout: --tp, --pp and --ep only say over
    how many workers to spread the model here. Every file is checked against
    its checksum first. A bfloat16 model is written back in bfloat16, whatever
    it was trained in; --dtype says otherwise.
    """
    from hybridflow.observability.log import configure

    configure("driver", level="WARNING")
    layout = LayoutRequest(tp=tp, pp=pp, dp=dp, ep=ep, etp=etp, sequence_parallel=sequence_parallel)
    with interruptible("the output is not complete", output, "give the same command with --overwrite"):
        from hybridflow.tools.export import ExportJob, export_checkpoint  # this takes seconds

        written = "model" if dtype is None else dtype.value
        export_checkpoint(ExportJob(checkpoint, output, layout, num_threads, overwrite, written), note)
    typer.echo(f"{output}: model of {checkpoint}")


def sft(config: ConfigFiles, set_: Overrides = None, resume: Resume = False) -> None:
    """Train on demonstrations: the warm-up before RL, as a run of its own in `<run.directory>/<run.name>`.

    \b
    hybridflow sft --config configs/sft.toml --set data.path=rows.parquet
    hybridflow sft --config configs/sft.toml --set train.layout.tp=2 run.name=b
    hybridflow sft --config configs/sft.toml --resume

    Rows are conversations, {"messages": [...]}, or DocQA-RL rows with a column
    `response`, else the gold answer is imitated. Only assistant turns count.
    The loss is the mean over conversations of each one's mean over its tokens;
    train.loss = "token_mean" weighs tokens alike.

    The model is written to hf/ at the end. A run of the same name that is there
    already is renamed. Ctrl-C stops cleanly; --resume goes on.
    """
    from hybridflow.config.load import load_config
    from hybridflow.observability.log import configure
    from hybridflow.tools.sft_config import SftConfig

    configure("driver", level="WARNING")
    resolved = load_config(config, set_ or [], SftConfig, paths_must_exist=True)
    with interruptible("nothing was started"):
        from hybridflow.tools.sft_start import start_sft

        start_sft(resolved, resume=resume)


@contextmanager
def interruptible(remedy: str, output: Path | None = None, then: str = f"go on: {GOES_ON}") -> Iterator[None]:
    """Ctrl-C ends the command with `remedy`. Where the disk of `output` is full, DiskFullError says so, and `then`."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        note(tell_interrupted(interrupt, remedy))
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if isinstance(error, OSError) and error.filename is None and output is not None:
            error.filename = str(output)  # a write does not know the name
        full = None if output is None else explain_full(error, output.absolute().parent, then)
        if full is None:
            raise
        raise full from error
