"""Whether a run that is to be resumed has anything left to do; read from its summary, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridflow.reading import read_json


def read_finished(summary: Path, model: Path, num_steps: int | None) -> dict[str, Any] | None:
    """The summary of a run that did its `num_steps` and exported `model`; None where something is left to do.

    `num_steps` None: as many as the summary calls all (`total_steps`).
    """
    try:
        read = read_json(summary)
        status, done = str(read["status"]), int(read["num_steps"])
        wanted = int(read["total_steps"]) if num_steps is None else num_steps
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing that can be trusted: the checkpoint decides
    is_whole = any(model.glob("*.safetensors")) and (model / "config.json").is_file()
    return read if status.startswith("finished") and done >= wanted and is_whole else None


def tell_finished(run: Path, num_steps: int, key: str) -> str:
    """What the user of `--resume` reads then."""
    return (
        f"the run {run} is finished: {num_steps} steps are done, and the model is in {run / 'hf'}. "
        f"For more steps: --resume --set {key}=<more than {num_steps}>"
    )
