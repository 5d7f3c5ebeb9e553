"""Finds out, by its summary, whether a run that is to be resumed has anything left to do, before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hybridflow.reading import read_json
from hybridflow.recording.run_folder.folder import RunFolder


def read_finished(summary: Path, model: Path, num_steps: int | None) -> dict[str, Any] | None:
    """The summary of a run that did its `num_steps` and exported `model`; None where something is left to do.

    `num_steps` None: as many as the summary calls all (`total_steps`). A curriculum that is over ends a run before.
    """
    try:
        read = read_json(summary)
        status, done = str(read["status"]), int(read["num_steps"])
        wanted = int(read["total_steps"]) if num_steps is None else num_steps
    except (OSError, ValueError, KeyError, TypeError):
        return None  # nothing that can be trusted: the checkpoint decides
    is_whole = any(model.glob("*.safetensors")) and (model / "config.json").is_file()
    is_done = done >= wanted or is_over(read)
    return read if status.startswith("finished") and is_done and is_whole else None


def is_over(summary: dict[str, Any]) -> bool:
    """Whether the last phase of the run's curriculum has ended."""
    curriculum = summary.get("curriculum")
    return isinstance(curriculum, dict) and curriculum.get("is_over") is True


def tell_if_finished(
    folder: RunFolder, config: BaseModel, num_steps: int | None, note: Callable[[str], None], *, unless: str = ""
) -> bool:
    """Whether the run that `--resume` names has nothing left to do, which the user is then told.

    `unless` names a key that, where it differs from the run's, leaves that to its checkpoint. Raises ConfigError or
    CheckpointError where `config` is not that of the run.
    """
    folder.check_same_run(config)
    finished = read_finished(folder.summary, folder.hf_export, num_steps)
    if finished is None or (unless and not folder.is_as_before(config, unless)):
        return False
    more = f"For more steps: --resume --set train.num_steps=<more than {finished['num_steps']}>"
    if is_over(finished):
        more = "The last phase of its curriculum has ended. For more steps start another run with a longer one"
    note(
        f"the run {folder.path} is finished: {finished['num_steps']} steps are done, and the model is in "
        f"{folder.path / 'hf'}. {more}"
    )
    return True
