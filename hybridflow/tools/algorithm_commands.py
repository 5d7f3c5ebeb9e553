"""The command `hybridflow check-algorithm`: the invariance suite on a part of an algorithm."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict

from hybridflow.config.algorithm_section import AlgorithmSection
from hybridflow.config.function_names import FILE_NAME, to_module
from hybridflow.config.load import load_config
from hybridflow.errors import ConfigError
from hybridflow.observability.visible import visible
from hybridflow.tools.options import Overrides

EXIT_BROKEN = 1
EXIT_INTERRUPTED = 130


class KindOption(StrEnum):
    loss = "loss"
    advantage = "advantage"
    filter = "filter"
    metrics = "metrics"
    aggregation = "aggregation"
    mask = "mask"
    correction = "correction"


class AlgorithmFile(BaseModel):
    """A training configuration of which only `[algorithm]` is read."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    algorithm: AlgorithmSection = AlgorithmSection()


def mount(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("check-algorithm")(check_algorithm)


def check_algorithm(
    part: Annotated[
        str, typer.Argument(help='"module:function", found in the working folder or installed; or a name.')
    ],
    kind: Annotated[
        KindOption | None, typer.Option(help="What it is; default: by its name, or by what it takes and gives.")
    ] = None,
    config: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="Training configuration whose algorithm is taken; several are laid over."),
    ] = None,
    set_: Overrides = None,
) -> None:
    """Try a loss, advantage, filter or metric on made-up values: what must not change its numbers, and does.

    \b
    hybridflow check-algorithm mine:loss
    hybridflow check-algorithm mine:loss --set algorithm.parameters.floor=0.1
    hybridflow check-algorithm mine:advantage --config train.toml
    hybridflow check-algorithm clip

    \b
    A whole example, mine.py:
        import torch
        def loss(logprobs, old_logprobs, advantages, floor=0.05):
            ratio = (logprobs - old_logprobs).clamp(-20, 20).exp()
            clipped = ratio.clamp(floor, 1.2)
            return torch.maximum(-ratio * advantages, -clipped * advantages)
    and in the configuration:
        algorithm.loss = "mine:loss"
        algorithm.parameters.floor = 0.1

    \b
    A function is given what its parameters name:
        loss, metrics  logprobs, advantages, old_logprobs, rollout_logprobs and
                       other columns, a number per token each: tensors [N];
                       rows (sums over whole completions); tokens (all of it)
        advantage      groups, rewards
        filter         group, rewards
    and returns: loss, metrics a tensor [N]; advantage a list of numbers per
    group; filter a short name of the reason to leave the group out, or None.

    \b
    A mean belongs into no loss: algorithm.aggregation divides sums over all
    micro-batches and ranks, once. The suite packs the same rows in other orders,
    micro-batches and ranks, and compares. More: docs/own-algorithm.md

    Exit code: 0, or 1 where a check is broken.
    """
    from hybridflow.observability.log import configure

    configure("check-algorithm", level="WARNING")
    section = _read(part, config or [], set_ or [])
    print("importing torch ...", file=sys.stderr, flush=True)
    try:
        num_broken = _report(part, kind, _parameters_of(section))
    except KeyboardInterrupt:
        print("interrupted; not everything was checked", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if num_broken:
        raise typer.Exit(EXIT_BROKEN)


def _read(part: str, files: list[Path], overrides: list[str]) -> AlgorithmSection:
    if FILE_NAME.search(part):
        raise ConfigError(f"{part!r} is a file. Remedy: write {to_module(part)}, in the folder of the file")
    section = load_config(files, overrides, AlgorithmFile).algorithm
    folders = [*section.module_folders, *(path.parent for path in reversed(files)), Path.cwd()]
    found = dict.fromkeys(str(Path(folder).resolve()) for folder in folders)
    return section.model_copy(update={"module_folders": list(found)})


def _parameters_of(section: AlgorithmSection) -> dict[str, Any]:
    """By the names that parts take them by; of sections within the section those that were set, as the suite makes up
    the others so that each bound takes some tokens."""
    kl = {f"kl_{key}": value for key, value in section.kl.model_dump(exclude_unset=True).items()}
    return section.model_dump() | section.rollout_correction.model_dump(exclude_unset=True) | kl


def _report(part: str, kind: KindOption | None, parameters: dict[str, Any]) -> int:
    """Prints each outcome as it comes; returns the number of broken ones."""
    from hybridflow.algorithms.invariances.suite import Guess, check_part, guess_kind, settings_of

    guess = Guess(kind.value, "--kind") if kind is not None else guess_kind(part, parameters)
    settings = settings_of(guess.kind, part, parameters)
    _tell(f"{part}: {guess.kind} ({guess.why})" + (f"; {settings}" if settings else ""))
    num_checks = num_broken = 0
    for outcome in check_part(guess.kind, part, parameters):
        num_checks += 1
        num_broken += not outcome.is_kept
        _tell(f"{'ok' if outcome.is_kept else 'BROKEN':8}{outcome.check:18}{outcome.told}")
        if outcome.stops_runs and not outcome.is_kept:
            _tell(f"{'':8}the other checks need this one")
    checks = f"{num_checks} check{'' if num_checks == 1 else 's'}"
    _tell(f"{checks}, {num_broken} broken" if num_broken else f"{checks}, all hold")
    return num_broken


def _tell(line: str) -> None:
    print(visible(line), flush=True)
