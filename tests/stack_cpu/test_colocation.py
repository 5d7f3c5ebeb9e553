"""Memory changes hands on the real stack: an engine gives its memory back and, with weights again, decodes as before.

One system goes through three hand-overs: exact shards, whole tensors, and an engine that is killed in between.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from hybridflow.config.load import load_config
from hybridflow.config.sections import Config
from hybridflow.loop.collect import collect_step
from hybridflow.loop.step import build_requests, plan_all
from hybridflow.observability.reporter import Notes
from hybridflow.policy.init import write_policy
from hybridflow.runtime.colocation import Colocation
from hybridflow.runtime.system import System
from hybridflow.types import SamplingParams
from tests.stack_cpu.command import ROOT, build_prompts, settings

pytestmark = [pytest.mark.full, pytest.mark.stack_cpu, pytest.mark.timeout(400)]

MIB = 2**20
KV_TOKENS = 200_000
KV_BYTES = KV_TOKENS * 2 * 2 * 2 * 32 * 4
"""Tokens x layers x (keys, values) x heads x width x float32."""
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)
PROMPTS = build_prompts(2)


def wide_model(folder: Path) -> Path:
    """The tiny model with matrices of some size, so that weights are seen in the memory of a process."""
    shutil.copytree(ROOT / "configs/models/tiny", folder / "wide")
    config = json.loads((folder / "wide/config.json").read_text())
    (folder / "wide/config.json").write_text(json.dumps(config | {"hidden_size": 512, "intermediate_size": 4096}))
    write_policy(folder / "wide", folder / "hf", seed=0)
    return folder / "hf"


def engine_memory(system: System) -> int:
    """Resident bytes of SGLang's processes."""
    return sum(psutil.Process(pid).memory_info().rss for pid in system.rollout.pids[1:])


def written(system: System, prefix: str) -> list[list[int]]:
    collected = collect_step(
        plan_all(build_requests(prefix, PROMPTS, 1)),
        GREEDY,
        rollout=system.rollout,
        stream=system.stream,
        verdict_timeout_s=60,
        check_workers=system.check_workers,
    )
    return [group.members[0].completion.token_ids for group in collected.groups]


def test_memory_goes_and_comes_back_and_the_text_is_the_same(tmp_path: Path) -> None:
    model = wide_model(tmp_path)
    weights_bytes = (model / "model.safetensors").stat().st_size
    changes = {
        "train__layout__tp": 1,
        "reward__num_workers": 1,
        "rollout__kv_cache_tokens": KV_TOKENS,
        "rollout__release_memory": "on",
        "rollout__weight_transport": "exact",
    }
    config = load_config([ROOT / "configs/quickstart.toml"], settings(model, tmp_path, **changes), Config)
    notes: list[str] = []
    with System(config, model, tmp_path / "logs", Notes(notes.append)) as system:
        over = Colocation(system.trainer, system.rollout, releases=True, offloads=True)
        over.sync_weights(0)
        before = written(system, "e00000")
        full = engine_memory(system)
        over.to_trainer()
        released = full - engine_memory(system)
        assert 0.95 < released / (KV_BYTES + weights_bytes) < 1.1, f"{released / MIB:.1f} MiB of {full / MIB:.1f}"
        metrics = over.take_metrics()
        assert metrics["perf/released_mib/kv_cache"] * MIB == pytest.approx(KV_BYTES, rel=0.05)
        assert metrics["perf/released_mib/weights"] * MIB == pytest.approx(weights_bytes, rel=0.1)
        assert metrics["perf/taken_mib/trainer"] > 0

        over.sync_weights(1)
        assert written(system, "e00001") == before

        over.to_trainer()
        system.trainer.use_whole_tensors(8 * MIB, shared=True)
        over.sync_weights(2)
        assert written(system, "e00002") == before

        over.to_trainer()
        os.kill(system.rollout.pids[0], signal.SIGKILL)
        over.sync_weights(3)
        assert any(note.startswith("engine-0 (process ") and "is gone" in note for note in notes), notes
        assert written(system, "e00003") == before
