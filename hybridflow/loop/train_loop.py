"""The training loop. Read this first: everything else is called from here.

restore -> warm up -> keep the reference -> sync weights -> gate: trainer and engines compute one model -> evaluate
        -> for each step: collect groups -> measure (KL, AEPO) -> build batch -> hand the device over -> update
                          -> sync weights -> record, evaluate, enter the next phase where it is due, checkpoint,
                          gate of that phase
        -> evaluate -> export
"""

from __future__ import annotations

from hybridflow.config.sections import TrainSection
from hybridflow.loop.batch import build_batch
from hybridflow.loop.run import Run
from hybridflow.types import UpdateReport
from megatron_ext.optimizer.lr import LRSchedule, learning_rate


def train(run: Run) -> None:
    """Runs, or continues, a whole training run.

    The state is saved with each checkpoint, so that a run which any exception stopped can be resumed. Returns early,
    with a checkpoint, where the next phase needs other workers (`run.needs_other_workers`).
    """
    warm_up(run)
    run.keep_reference()
    run.sync_weights()
    run.check_engines(run.config, 0)
    run.evaluate_before()
    run.begin_stage()
    while not run.is_over:
        train_step(run)
        run.evaluate_if_due()
        begins_phase = run.advance()
        run.checkpoint_if_due()
        if run.needs_other_workers:
            return run.checkpoints.finish(run.trainer)
        if begins_phase:
            run.check_engines(run.config, run.state.rl_step)
            run.begin_stage()
    run.export()


def warm_up(run: Run) -> None:
    """The supervised stages that are not done yet, each saved when it is; then RL starts with a fresh optimizer."""
    for index in range(run.state.warmup_stages_done, len(run.config.warmup.stages)):
        run.hand_to_trainer()
        with run.recorder.phase("warmup"):
            run.warm_up(index)
        run.state.warmup_stages_done += 1
        if run.state.warmup_stages_done == len(run.config.warmup.stages):
            run.trainer.reset_optimizer()
        run.checkpoint()


def train_step(run: Run) -> None:
    """One step of GRPO: ROLLOUT, TRAIN, SYNC. Steps are numbered from 1.

    A step with nothing to learn from leaves weights, their version and the learning rate as they are.
    """
    step = run.begin_step()
    with run.recorder.phase("rollout"):
        collected = run.groups.collect(step, run.state.policy_version)
        run.recorder.add_collected()
    measured = run.measuring.measure(collected, run.config, run.hand_to_trainer)
    filtered = build_batch(collected.groups, run.config, run.state.policy_version, measured=measured)
    updates: list[UpdateReport] = []
    rate = next_learning_rate(run.config.train, run.state.policy_version)
    if filtered.batch is not None:
        run.hand_to_trainer()
        with run.recorder.phase("train"):
            updates = run.trainer.update(filtered.batch, rate)
        run.state.policy_version += any(not update.num_skipped for update in updates)
        run.sync_weights()
    elif measured is not None:
        run.hand_to_engines()
    run.state.rl_step = step
    metrics = run.recorder.record_step(
        step, collected, filtered, updates, learning_rate=rate, policy_version=run.state.policy_version
    )
    run.check_metrics(step, metrics)


def next_learning_rate(train: TrainSection, num_updates: int) -> float:
    """As `train.lr_schedule` says, after `num_updates` steps that changed the weights."""
    schedule = LRSchedule(
        peak=train.learning_rate,
        kind=train.lr_schedule,
        warmup_steps=train.lr_warmup_steps,
        total_steps=max(train.lr_decay_steps or train.num_steps, train.lr_warmup_steps, 1),
        min_ratio=train.lr_min_ratio,
    )
    return learning_rate(schedule, num_updates + 1)
