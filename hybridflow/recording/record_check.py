"""The records of a run that is to be resumed, looked at before anything of it is changed."""

from __future__ import annotations

from hybridflow.config.sections import Config
from hybridflow.recording.run_folder.train_folder import TrainFolder
from hybridflow.recording.state import RunState
from hybridflow.recording.step_lines import find_end


def check_records(config: Config, folder: TrainFolder, state: RunState) -> None:
    """Raises DataError, naming file and line, for a record that is broken or lacks a step of the checkpoint.

    An empty or missing file is none: whoever moved it away knows where it is.
    """
    step, recorded = state.rl_step, state.last_recorded_step
    find_end(folder.completions, step, kind="a completion", every_step=True, through=step > 0)
    find_end(folder.timeline, step, kind="the timeline of a step", every_step=True, through=step > 0)
    find_end(folder.eval_completions, recorded, kind="a completion")
    find_end(folder.metrics, recorded, kind="metrics of a step", every_step=True, through=recorded >= 0)
    find_end(folder.updates, step, kind="metrics of an update")
    done = warmup_steps_done(config, state)
    find_end(folder.warmup_metrics, done - 1, kind="metrics of a step", every_step=True, through=done > 0)


def warmup_steps_done(config: Config, state: RunState) -> int:
    """Steps of the stages that are done."""
    return sum(stage.num_steps for stage in config.warmup.stages[: state.warmup_stages_done])
