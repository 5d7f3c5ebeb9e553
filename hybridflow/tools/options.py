"""Options of commands: those of a run, and over how many workers the model is spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridflow.config.sections import LayoutSection
from hybridflow.errors import ConfigError

if TYPE_CHECKING:
    from megatron_ext.hf.config import HFConfig


ConfigFiles = Annotated[
    list[Path],
    typer.Option(
        "--config", "-c", help="TOML file, or resolved.json of a run; several are laid over each other, left to right."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="key.path=value, a TOML value or a bare word; may be repeated. Wins over files."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run of this name from its latest checkpoint.")]


TP = Annotated[int, typer.Option("--tp", help="Tensor parallel: ranks that share every matrix.")]
PP = Annotated[int, typer.Option("--pp", help="Pipeline parallel: ranks that share the layers.")]
CP = Annotated[int, typer.Option("--cp", help="Context parallel: ranks that share the tokens of each row.")]
DP = Annotated[
    int | None,
    typer.Option("--dp", help="Data parallel: copies of the model; default 1, or as many as --ep x --etp need."),
]
EP = Annotated[int, typer.Option("--ep", help="Expert parallel (MoE): ranks that share the experts.")]
ETP = Annotated[int, typer.Option("--etp", help="Expert tensor parallel (MoE): ranks that share each expert.")]
SP = Annotated[
    bool | None,
    typer.Option(
        "--sequence-parallel/--no-sp",
        help="Cut activations along the tokens too; default: only where MoE with --tp needs it.",
    ),
]
Threads = Annotated[int, typer.Option(help="CPU threads of each worker.")]


@dataclass(frozen=True)
class LayoutRequest:
    """Parallel sizes as the user gave them."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int | None = None
    ep: int = 1
    etp: int = 1
    sequence_parallel: bool | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError naming the option, its value and the rule."""
        for name in ("tp", "pp", "cp", "dp", "ep", "etp"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigError(f"--{name} {size}: a parallel size must be at least 1; use 1 for none")

    def resolve(self, hf_config: HFConfig) -> LayoutSection:
        """The layout for this model, with what the user left open; whether it fits is not checked.

        The experts live on the ranks tp x cp x dp of a pipeline stage, so that `dp` grows until ep x etp divides them.
        Without sequence parallelism tensor parallel ranks would all send the same tokens to the experts.
        """
        experts = self.ep * self.etp
        sequence_parallel = self.sequence_parallel
        return LayoutSection(
            tp=self.tp,
            pp=self.pp,
            cp=self.cp,
            dp=experts // math.gcd(experts, self.tp * self.cp) if self.dp is None else self.dp,
            ep=self.ep,
            etp=self.etp,
            sequence_parallel=hf_config.moe is not None and self.tp > 1
            if sequence_parallel is None
            else sequence_parallel,
        )


def check_threads(num_threads: int) -> None:
    """Raises ConfigError."""
    if num_threads < 1:
        raise ConfigError(f"--num-threads {num_threads}: a worker needs at least 1 thread; give 1 or more")
