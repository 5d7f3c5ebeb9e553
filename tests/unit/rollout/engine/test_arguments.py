"""Arguments that are given to SGLang, checked against the installed version."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridflow.config.cluster_section import StallSection
from hybridflow.config.rollout_section import RolloutSection
from hybridflow.rollout.cpu import IMPORT_PATH, core_lists, cpu_environment
from hybridflow.rollout.engine.arguments import (
    KEPT_BACK_TOKENS,
    build_arguments,
    engine_environment,
    leave_allocator_alone,
    releases_memory,
)
from hybridflow.rollout.engine.sglang_messages import MASK_LIMIT_TOKENS, MAX_MASK_TOKENS

ROOT = Path(__file__).parents[4]

CODE = """
import sys
from hybridflow.config.rollout_section import RolloutSection
from hybridflow.errors import ConfigError
from hybridflow.rollout.engine.arguments import build_arguments
given = build_arguments(RolloutSection(sglang={"max_running_requests": 3}), dtype="float32", seed=1)
print(given["max_running_requests"])
try:
    build_arguments(RolloutSection(sglang={"chunked_prefil_size": 3}), dtype="float32", seed=1)
except ConfigError as error:
    print(error)
narrow = build_arguments(RolloutSection(top_p=0.9), dtype="float32", seed=1)
print(narrow["sampling_mask_max_tokens"])
told = build_arguments(RolloutSection(), dtype="float32", seed=1, tells_experts=True)
print(told["enable_return_routed_experts"])
import types
import sglang.srt.server_args
sglang.srt.server_args.ServerArgs = types.SimpleNamespace(__struct_fields__=())  # as an older one
try:
    build_arguments(RolloutSection(top_p=0.9), dtype="float32", seed=1)
except ConfigError as error:
    print(error)
try:
    build_arguments(RolloutSection(), dtype="float32", seed=1, tells_experts=True)
except ConfigError as error:
    print(error)
import os, pathlib, tempfile
from sglang.srt import utils
from sglang.srt.plugins.hook_registry import HookRegistry
from hybridflow.errors import RolloutError
from hybridflow.rollout.engine.private_ranks import rank_environment
from hybridflow.rollout.engine.signed_broadcast import check_signed, sign_objects
check_signed()  # nobody made a key
with tempfile.TemporaryDirectory() as folder:
    os.environ |= rank_environment(pathlib.Path(folder))
    try:
        check_signed()
    except RolloutError as error:
        print(str(error).partition(": ")[0])
    sign_objects()
    HookRegistry.apply_hooks()
    check_signed()
    try:
        utils.broadcast_pyobj([1], 0)
    except ValueError as error:
        print(error)
"""


def test_passed_arguments_win_and_an_unknown_one_is_named() -> None:
    """In a process of its own: SGLang is not imported into the tests' process."""
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=ROOT,
        env=os.environ | cpu_environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines() == [
        "3",
        "rollout.sglang.chunked_prefil_size: the installed SGLang has no such argument; "
        "did you mean 'chunked_prefill_size'?",
        "8192",
        "True",
        "rollout.top_p = 0.9: the installed SGLang does not return which tokens could be drawn, so the trainer would "
        "compute other probabilities than completions were drawn with. Set rollout.top_p = 1, or install a SGLang with "
        "return_sampling_mask",
        'algorithm.routing_replay = "engine": the installed SGLang does not say which experts it chose. Remedy: set '
        'algorithm.routing_replay = "off", or install a SGLang with enable_return_routed_experts',
        "the ranks of this engine would unpickle unsigned objects",
        "Default process group has not been initialized, please make sure to call init_process_group.",
    ], result.stderr


def test_without_passed_arguments_sglang_is_not_imported() -> None:
    before = "sglang" in sys.modules
    arguments = build_arguments(RolloutSection(kv_cache_tokens=4096, context_tokens=99), dtype="float32", seed=7)
    assert ("sglang" in sys.modules) == before
    assert "enable_return_routed_experts" not in arguments
    assert arguments["max_total_tokens"] == 4096 + KEPT_BACK_TOKENS
    assert (arguments["context_length"], arguments["random_seed"]) == (99 + KEPT_BACK_TOKENS, 7)


def test_the_pool_is_left_to_the_engine_unless_given() -> None:
    assert "max_total_tokens" not in build_arguments(RolloutSection(), dtype="float32", seed=0)


def test_the_cpu_path_is_put_before_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    environment = cpu_environment(3)
    assert environment["PYTHONPATH"] == f"{IMPORT_PATH}{os.pathsep}/elsewhere"
    assert environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("cores", "given", "lists"),
    [
        ({0, 1, 2, 3}, (1, 2, 0), "0|1"),
        ({0, 1, 2, 3}, (1, 2, 1), "2|3"),
        ({4, 5, 6, 7}, (2, 2, 0), "4,5|6,7"),
        ({0, 1}, (1, 2, 3), "0|1"),  # shared where there are too few
        ({0, 1}, (4, 2, 0), "0,1|0,1"),
    ],
)
def test_cores_of_tensor_parallel_ranks(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], given: tuple[int, int, int], lists: str
) -> None:
    """(threads, ranks, engine) over the cores that this process may use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert core_lists(*given) == lists
    assert ("SGLANG_CPU_OMP_THREADS_BIND" in cpu_environment(*given)) is True
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in cpu_environment(given[0])


def test_memory_is_released_where_it_is_asked_for() -> None:
    assert "enable_memory_saver" not in build_arguments(RolloutSection(), dtype="float32", seed=0)
    assert build_arguments(RolloutSection(release_memory="on"), dtype="float32", seed=0)["enable_memory_saver"]


@pytest.mark.parametrize("driver", [False, True])
def test_slots_decide_and_not_the_driver(driver: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without a GPU opens engines on GPU nodes, and one with a GPU on nodes without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: driver)
    on_gpu = build_arguments(RolloutSection(), dtype="bfloat16", seed=0, has_cuda=True)
    assert on_gpu["enable_memory_saver"] and "device" not in on_gpu
    on_cpu = build_arguments(RolloutSection(), dtype="float32", seed=0, has_cuda=False)
    assert on_cpu["device"] == "cpu" and "enable_memory_saver" not in on_cpu
    assert "SGLANG_USE_CPU_ENGINE" not in engine_environment(RolloutSection(), 0, has_cuda=True)
    assert engine_environment(RolloutSection(), 0, has_cuda=True)["SGLANG_MEMORY_SAVER_CUDA_GRAPH"] == "true"
    assert engine_environment(RolloutSection(), 0, has_cuda=False)["SGLANG_USE_CPU_ENGINE"] == "1"
    assert releases_memory(RolloutSection(), True) and not releases_memory(RolloutSection(), False)
    assert not releases_memory(RolloutSection(own_devices=True), True)


def test_the_sampling_mask_has_room_for_ties_at_the_cut() -> None:
    """With CUDA all tokens that are tied with the last one stay in, above top_k."""
    limit = MASK_LIMIT_TOKENS
    assert limit - MAX_MASK_TOKENS >= 4096


def test_what_sets_the_trainers_allocator_is_not_the_engines() -> None:
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "PYTORCH_ALLOC_CONF": "a:1", "HOME": "/h"}
    leave_allocator_alone(environment)
    assert environment == {"HOME": "/h"}


def test_time_limits_fit_a_model_of_65_gb() -> None:
    assert (RolloutSection().start_timeout_s, RolloutSection().hang_timeout_s) == (1800, 600)
    assert all(limit > RolloutSection().hang_timeout_s for limit in StallSection().limits().values())
