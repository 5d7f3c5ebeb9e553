"""The first seconds of `hybridflow train`: what can be said and refused before the libraries of the run are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hybridflow.config.preset_text import tell_preset
from hybridflow.preflight.load import load_run
from hybridflow.recording.display.live import LOADING, LiveDisplay
from hybridflow.recording.run_folder.finished import tell_if_finished
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.trainer.kernels import resolve_worker


def start_training(files: Sequence[Path], overrides: Sequence[str], *, resume: bool) -> None:
    """Runs what the files say, to its end; `--resume` of a finished run says so and starts nothing.

    Raises ConfigError with all errors at once, and what stopped the run.
    """
    found, problems = load_run(files, overrides)
    with LiveDisplay(found.run.name if found is not None else "hybridflow") as display:
        if found is not None and not resume:
            display.note("checking data, layout and verifiers (usually 1 to 3 s)")
        from hybridflow.preflight.report import refuse_run  # what it checks with takes half a second

        config = refuse_run(found, problems, is_checked=not resume, note=display.note)
        if (preset := tell_preset(config)) is not None:
            display.note(preset)
        worker, told = resolve_worker(config.train)
        config = config.model_copy(update={"train": worker})
        display.note(told)
        folder = TrainFolder(config)
        folder.refuse_second_driver()
        if resume:
            if tell_if_finished(folder, config, config.train.num_steps, display.note):
                return
            from hybridflow.preflight.run import check_quickly

            check_quickly(config, folder.data)
        display.note(LOADING)
        from hybridflow.tools.train import run_training

        run_training(config, folder, display, resume=resume)
