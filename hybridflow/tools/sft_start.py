"""The first seconds of `hybridflow sft`: what can be said and refused before the libraries of the run are loaded."""

from __future__ import annotations

from hybridflow.recording.display.live import LOADING, LiveDisplay
from hybridflow.recording.run_folder.finished import tell_if_finished
from hybridflow.recording.run_folder.folder import RunFolder
from hybridflow.tools.sft_config import SftConfig
from hybridflow.trainer.kernels import resolve_worker

MAY_CHANGE_ON_RESUME = (
    "run.directory",
    "run.mode",
    "cluster",
    "train.num_steps",
    "train.num_epochs",
    "train.num_threads",
    "checkpoint",
    "tracking",
)


def start_sft(config: SftConfig, *, resume: bool) -> None:
    """Trains to the end; `--resume` of a finished run says so and starts nothing. Raises what stopped the run."""
    worker, told = resolve_worker(config.train)
    config = config.model_copy(update={"train": worker})
    folder = RunFolder(config, MAY_CHANGE_ON_RESUME)
    with LiveDisplay(config.run.name) as display:
        display.note(told)
        folder.refuse_second_driver()
        steps, unless = config.train.num_steps, "train.num_epochs"
        if resume and tell_if_finished(folder, config, steps, display.note, unless=unless):
            return
        display.note(LOADING)
        from hybridflow.tools.sft import run_sft

        run_sft(config, folder, display, resume=resume)
