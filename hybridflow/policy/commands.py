"""`hybridflow model`: make a policy to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="model", help="Make a policy to start from.", no_args_is_help=True)


@app.command()
def init(
    config: Annotated[Path, typer.Option(help="Folder with config.json and a tokenizer, e.g. configs/models/tiny.")],
    output: Annotated[Path, typer.Option(help="Folder for the Hugging Face model; made if it does not exist.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
) -> None:
    """Write a model with seeded random weights in the Hugging Face format.

    Example: hybridflow model init --config configs/models/tiny --output runs/tiny --seed 0
    """
    from hybridflow.policy.init import write_policy  # torch and transformers take seconds to import

    write_policy(config, output, seed)
    typer.echo(f"{output}: model with seed {seed}, made from {config}")


@app.command("build-assets")
def build_assets(
    output: Annotated[Path, typer.Option(help="Folder for config.json and the tokenizer files.")],
) -> None:
    """Rebuild config and tokenizer of the tiny model, byte for byte as committed.

    Example: hybridflow model build-assets --output configs/models/tiny
    """
    from hybridflow.policy.init import build_tiny_assets

    build_tiny_assets(output)
    typer.echo(f"{output}: tiny model assets")
