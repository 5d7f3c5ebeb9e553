"""The command `hybridflow reshard`: what a weight update will move, known before it runs."""

from __future__ import annotations

import dataclasses
import difflib
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybridflow.errors import ConfigError

if TYPE_CHECKING:
    from megatron_ext.hf.config import HFConfig

TRAIN_KEYS = ("tp", "pp", "vpp", "ep", "etp", "cp", "dp")
ROLLOUT_KEYS = ("tp", "ep")


class Dtype(StrEnum):
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"

    @property
    def element_bytes(self) -> int:
        return 4 if self is Dtype.fp32 else 2


def mount(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command()(reshard)


def reshard(
    model: Annotated[Path, typer.Option(help="Hugging Face directory, or its config.json. Weights are not needed.")],
    train: Annotated[str, typer.Option(help=f"Megatron's layout: {', '.join(TRAIN_KEYS)}; what is left out is 1.")],
    rollout: Annotated[str, typer.Option(help=f"Layout of an SGLang engine: {', '.join(ROLLOUT_KEYS)}.")],
    gpus_per_node: Annotated[int, typer.Option(min=1, help="GPUs that are joined by NVLink.")] = 8,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights, in the trainer and in the engines.")] = Dtype.bf16,
    bucket_mib: Annotated[int, typer.Option(min=1, help="Buffer of a rank for what is handed over at a time.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show what a weight update moves: bytes received per rank, by way, buffers, and what gathering everything would.

    \b
    hybridflow reshard --model configs/models/r1-distill-qwen-32b --train tp=4,pp=2 --rollout tp=4
    hybridflow reshard --model Qwen3-30B-A3B --train tp=2,pp=2,ep=4,dp=4 --rollout tp=8,ep=8 --json

    Trainer rank i is on GPU i, and the engines share these GPUs, in the order that the report gives. Nothing is started
    and no weights are read.
    """
    from hybridflow.weights.reshard.report import compute_report, print_table
    from hybridflow.weights.reshard.rollout_layout import RolloutLayout
    from megatron_ext.parallel.layout import Layout

    train_sizes = _parse_layout("--train", train, TRAIN_KEYS)
    rollout_sizes = _parse_layout("--rollout", rollout, ROLLOUT_KEYS)
    report = compute_report(
        _read_model(model),
        # A mixture of experts needs sequence parallelism with tp; it changes nothing about the weights.
        dataclasses.replace(Layout(sequence_parallel=train_sizes.get("tp", 1) > 1), **train_sizes),
        RolloutLayout(**rollout_sizes),
        gpus_per_node=gpus_per_node,
        element_bytes=dtype.element_bytes,
        bucket_bytes=bucket_mib * 2**20,
    )
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        print_table(report)


def _read_model(path: Path) -> HFConfig:
    """Raises ConfigError naming the path if there is no config, or not of a supported model."""
    from huggingface_hub.errors import StrictDataclassError

    from megatron_ext.hf.config import UnsupportedModelError, read_hf_config

    file = path if path.is_file() else path / "config.json"
    if not file.is_file():
        raise ConfigError(f"--model {path}: there is no {file}; give a Hugging Face directory or its config.json")
    try:
        return read_hf_config(path)
    except (UnsupportedModelError, StrictDataclassError) as error:
        raise ConfigError(f"--model {path}: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"--model {path}: {file} is not JSON ({error}); give a Hugging Face config") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"--model {path}: {file} cannot be read ({error}); give a Hugging Face config") from error


def _parse_layout(option: str, text: str, keys: tuple[str, ...]) -> dict[str, int]:
    """Sizes of "tp=4,pp=2". Raises ConfigError naming the item, the rule and the nearest key."""
    sizes: dict[str, int] = {}
    for item in text.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{option} {text}: {key!r} is not one of {', '.join(keys)}{hint}")
        if key in sizes:
            raise ConfigError(f"{option} {text}: {key} is given twice; give it once")
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(
                f"{option} {text}: {key} = {value!r} has to be a whole number of at least 1, as in {key}=2"
            )
        sizes[key] = int(value)
    return sizes
