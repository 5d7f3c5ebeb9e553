"""The command `hybridflow judge serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybridflow.tools.commands import interruptible
from hybridflow.tools.progress import note

judge_app = typer.Typer(name="judge", help="Serve the model that compares answers.", no_args_is_help=True)


def mount(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.add_typer(judge_app)


@judge_app.callback()
def _judge() -> None:
    """A group, though it has one command."""


@judge_app.command()
def serve(
    model: Annotated[Path, typer.Option(help="Hugging Face directory: config, safetensors, tokenizer.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")],
    host: Annotated[str, typer.Option(help="Address of this machine to listen on.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="Name of the model in requests: reward.judge.model.")] = "judge",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on a CPU.")] = "auto",
    tp: Annotated[int, typer.Option("--tp", min=1, help="GPUs that share the model.")] = 1,
    context_tokens: Annotated[int | None, typer.Option(min=1, help="Window; default: the model's own.")] = None,
    num_threads: Annotated[int, typer.Option(min=1, help="CPU threads, where there is no GPU.")] = 2,
    start_timeout_s: Annotated[float, typer.Option(help="Longest time until it answers.")] = 900.0,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with the key that requests must carry; none: one is made.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The key itself; other users of the machine can read a command line.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="File for SGLang's output; default: standard error.")] = None,
) -> None:
    """Start an OpenAI-compatible server with SGLang, wait until it answers, print its URL, serve until Ctrl-C.

    It answers /v1/chat/completions, /v1/models and /health, and nothing else; the first two to those who send its key.
    Without one given it makes a key and prints it below the URL, as the line that sets it where requests come from.
    Beyond this machine (--host) a key has to be given; there is no TLS.

    \b
    hybridflow judge serve --model Qwen2.5-1.5B-Instruct --port 30000
    export OPENAI_API_KEY=...        # in the shell of the training run: the line that it printed
    hybridflow train --config run.toml --set reward.judge.endpoints='["http://127.0.0.1:30000/v1"]'
    """
    from hybridflow.tools.judge_key import read_key
    from hybridflow.tools.judge_serve import JudgeServerJob, serve_judge

    key = read_key(api_key, api_key_env)
    job = JudgeServerJob(model, port, host, name, dtype, tp, context_tokens, num_threads, start_timeout_s, log, key)
    with interruptible("the server has ended"):
        serve_judge(job, note)
