"""The state that a supervised run saves with each checkpoint, and what is said of it at its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from hybridflow.errors import CheckpointError
from hybridflow.reading import Unreadable, read_json
from hybridflow.recording.run_folder.summary import installed_versions
from hybridflow.tools.sft_inputs import SftInputs
from hybridflow.types import UpdateReport


class SftState(msgspec.Struct, kw_only=True):
    """Progress and totals."""

    step: int = 0
    """The last one done, from 1."""
    first_loss: float | None = None
    last_loss: float | None = None
    """None where it was not finite."""
    num_skipped_updates: int = 0
    wall_s: float = 0.0
    """Seconds of the run up to here, earlier processes included."""
    peak_rss_gib: float = 0.0

    def add_step(self, report: UpdateReport) -> None:
        self.step += 1
        self.last_loss = report.loss if math.isfinite(report.loss) else None
        if self.step == 1:
            self.first_loss = self.last_loss
        self.num_skipped_updates += report.num_skipped


def write_state(state: SftState, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2))


def read_state(path: Path) -> SftState:
    """Raises CheckpointError if the file is missing or not a state."""
    try:
        return msgspec.convert(read_json(path), SftState)
    except (OSError, Unreadable, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path}: not a readable run state: {error}") from error


def build_summary(state: SftState, inputs: SftInputs, *, status: str, seed: int, hf: Path) -> dict[str, Any]:
    """Everything that summary.json says. `hf` is where the trained model is; null until the run is finished."""
    return {
        "status": status,
        "seed": seed,
        "num_steps": state.step,
        "total_steps": inputs.stage.num_steps,
        "num_demonstrations": len(inputs.demonstrations),
        "num_dropped": inputs.demonstrations.num_dropped,
        "first_loss": state.first_loss,
        "final_loss": state.last_loss,
        "num_skipped_updates": state.num_skipped_updates,
        "wall_s": round(state.wall_s, 3),
        "peak_rss_gib": round(state.peak_rss_gib, 3),
        "hf": str(hf) if status == "finished" else None,
        "versions": installed_versions(),
    }


def build_table(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The rows of the end table."""
    return {
        "steps": f"{summary['num_steps']} / {summary['total_steps']}",
        "demonstrations": summary["num_demonstrations"],
        "rows left out as too long": summary["num_dropped"],
        "loss, first step": summary["first_loss"],
        "loss, last step": summary["final_loss"],
        "updates skipped": summary["num_skipped_updates"],
        "wall seconds": summary["wall_s"],
        "peak memory, GiB": summary["peak_rss_gib"],
        "model": summary["hf"],
        "run folder": str(folder),
    }
