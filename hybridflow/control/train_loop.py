"""The training loop. Read this first: everything else is called from here.

restore -> warm up -> publish -> gate: trainer and engines compute one model -> evaluate
        -> for each step: collect groups -> build batch -> hand the device over -> update -> publish
                          -> record, evaluate, checkpoint
        -> evaluate -> export
"""

from __future__ import annotations

from hybridflow.control.batch import build_batch
from hybridflow.control.run import Run
from hybridflow.control.warmup import run_stage
from hybridflow.types import UpdateReport

RL = "RL"
"""The stage after the warm-up, as the display names it."""


def train(run: Run) -> None:
    """Runs, or continues, a whole training run.

    The state is saved with each checkpoint, so that a run which any exception stopped can be resumed.
    """
    warm_up(run)
    run.publish()
    run.check_engines()
    run.evaluate_before()
    run.display.start(RL, run.config.train.num_steps, run.state.rl_step)
    while run.state.rl_step < run.config.train.num_steps:
        train_step(run)
        run.evaluate_if_due()
        run.checkpoint_if_due()
    run.export()


def warm_up(run: Run) -> None:
    """The supervised stages that are not done yet, each saved when it is; then RL starts with a fresh optimizer."""
    for index in range(run.state.warmup_stages_done, len(run.config.warmup.stages)):
        run.hand_to_trainer()
        with run.phase("warmup"):
            run_stage(index, run.config, run.tokenizer, run.trainer, run.display, run.warmup_tracker)
        run.state.warmup_stages_done += 1
        if run.state.warmup_stages_done == len(run.config.warmup.stages):
            run.trainer.reset_optimizer()
        run.checkpoint()


def train_step(run: Run) -> None:
    """One step of GRPO: ROLLOUT, TRAIN, SYNC. Steps are numbered from 1.

    A step with nothing to learn from leaves weights, their version and the learning rate as they are.
    """
    step = run.begin_step()
    with run.phase("rollout"):
        collected = run.collect(step)
    filtered = build_batch(collected.groups, run.config, run.state.policy_version)
    updates: list[UpdateReport] = []
    rate = run.learning_rate()
    if filtered.batch is not None:
        run.hand_to_trainer()
        with run.phase("train"):
            updates = run.trainer.update(filtered.batch, rate)
        run.state.policy_version += any(not update.num_skipped for update in updates)
        run.publish()
    run.state.rl_step = step
    run.record(step, collected, filtered, updates, rate)
