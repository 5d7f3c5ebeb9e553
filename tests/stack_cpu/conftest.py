"""A tiny policy that already answers some questions: what the tests here start from."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from filelock import FileLock

from hybridflow.data.rows import write_rows
from hybridflow.data.synth.spec import SynthSpec, generate_rows
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SKILL_STEPS = 150
"""Enough for an answer in a sentence, and for the right one in a quarter of the groups at least once: groups with
variance, so that steps train on something. With more steps fewer groups have it: after 330, one in eight."""


def _warm_up(out_dir: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    from hybridflow.algorithms.spec import supervised_spec
    from hybridflow.config.load import load_config
    from hybridflow.config.sections import Config
    from hybridflow.loop.warmup import build_stage_batch
    from hybridflow.policy.init import write_policy
    from hybridflow.trainer.core import TrainerCore

    config = load_config([ROOT / "configs/quickstart.toml"], ["train.layout.tp=1"], Config)
    tiny = ROOT / "configs/models/tiny"
    start = Path(out_dir).with_name("start")
    write_policy(tiny, start, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    core = TrainerCore(
        hf_dir=str(start),
        dtype="float32",
        layout=config.train.layout,
        optimizer=config.train.optimizer,
        rank=0,
        master_addr="127.0.0.1",
        master_port=free_port(),
        seed=0,
    )
    stage = config.warmup.stages[0]
    for step in range(SKILL_STEPS):
        batch = build_stage_batch(stage, 0, step, config, tokenizer)
        core.update(batch, stage.learning_rate * min(1.0, (step + 1) / 20), supervised_spec())
    core.save_hf(Path(out_dir))
    core.close()


@pytest.fixture(scope="session")
def warm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF directory of a half-skilled policy, trained by Megatron in one process; once, however many test workers."""
    root = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        root = root.parent  # the workers' own folders lie side by side in that of the session
    out_dir, done = root / "policy" / "warm", root / "policy" / "done"
    with FileLock(root / "policy.lock"):
        if not done.exists():
            out_dir.parent.mkdir(exist_ok=True)
            process = multiprocessing.get_context("spawn").Process(target=_warm_up, args=(str(out_dir),))
            process.start()
            process.join(timeout=170)
            assert process.exitcode == 0, "the warm-up of the test policy failed"
            done.touch()
    return out_dir


@pytest.fixture(scope="module")
def sft_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DocQA rows of unequal length; some with a response to imitate, the rest with the gold answer only."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = [
        row
        for tokens, seed in ((40, 1), (120, 2))
        for row in generate_rows(SynthSpec(tier="easy", doc_tokens=tokens, num_train=6, num_test=1), "train", seed)
    ]
    write_rows(path, rows)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines[::3]:
        line["response"] = f"I read the text twice. {line['reward_model']['ground_truth']}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
