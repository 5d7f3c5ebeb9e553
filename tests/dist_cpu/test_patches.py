"""Every patch of Megatron-Core: it names what it relies on, and upstream still needs it.

The tests `test_upstream_...` run upstream without one patch and expect the very fault that the patch is there for. One
that fails after an upgrade says which patch can be dropped. Two faults are met by guards and not by patches; their
tests are test_pipeline_exchange.py, and test_a_persistent_background_worker_is_refused_without_a_device in
test_checkpoint.py.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import logging
import multiprocessing
import os
import pkgutil
import re
import signal
import types
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import megatron_ext
from megatron_ext import platform
from megatron_ext.optimizer import optimizer
from megatron_ext.optimizer import repairs as optimizer_repairs
from megatron_ext.parallel.layout import Layout
from megatron_ext.platform import patches
from megatron_ext.platform.patch import Patch
from megatron_ext.platform.torch_stand_in import FACTORIES, TORCH_STAND_IN, CpuCuda
from tests.dist_cpu import patch_programs
from tests.dist_cpu.launch import run_ranks

pytestmark = [
    pytest.mark.dist_cpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(torch.cuda.is_available(), reason="most patches are not applied with CUDA"),
]


def find_patches() -> list[Patch]:
    """All there are, wherever they stand."""
    found = {}
    for info in pkgutil.walk_packages(megatron_ext.__path__, "megatron_ext."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Patch):
                found[value.change.__name__] = value
    return [found[name] for name in sorted(found)]


PATCHES = find_patches()
NAMES = [patch.change.__name__ for patch in PATCHES]
SYMBOLS = [
    pytest.param(patch, symbol, id=f"{patch.change.__name__}-{symbol}") for patch in PATCHES for symbol in patch.symbols
]
ADDED = {"name_missing_product": {"te_general_gemm"}}
"""Names that upstream reads and nobody defines."""


def can_go(patch: Patch) -> str:
    return f"upstream does without it now: drop the patch {patch.change.__name__} of {patch.owner}"


@contextlib.contextmanager
def fault(patch: Patch, kind: type[BaseException], text: str) -> Iterator[None]:
    """Fails, saying what can be dropped, unless the code inside raises a `kind` that says `text`."""
    try:
        yield
    except kind as error:
        assert text in str(error), f"{can_go(patch)}, or see why it fails in another way"
    else:
        pytest.fail(can_go(patch))


def upstream(name: str, module_torch: types.ModuleType = TORCH_STAND_IN) -> types.ModuleType:
    """A copy of an upstream module without its patches; nothing else refers to it."""
    package = importlib.import_module(name.rpartition(".")[0])
    spec = PathFinder.find_spec(name, package.__path__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["torch"] = module_torch
    return module


@pytest.fixture(scope="module")
def one_rank(hf_dirs: dict[str, Path]) -> dict[str, Any]:
    return run_ranks(Layout(), patch_programs.one_rank, hf_dirs["qwen3_tied"])[0]


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(Layout(dp=2, etp=2), patch_programs.exchange_unequal_parts)


# What a patch says of itself.


@pytest.mark.parametrize("patch", PATCHES, ids=NAMES)
def test_a_patch_has_a_reason_and_a_test_that_says_when_to_drop_it(patch: Patch) -> None:
    assert patch.symbols
    assert inspect.getdoc(patch.change)
    assert patch.drop_test.startswith("test_upstream_") and callable(globals().get(patch.drop_test))


def test_every_patch_is_applied() -> None:
    applied = (
        *patches.WITHOUT_CUDA,
        *patches.WITHOUT_TRANSFORMER_ENGINE,
        *patch_programs.REPAIRS,
        optimizer.skip_exchange_of_one,
    )
    assert {patch.change.__name__ for patch in applied} == set(NAMES)


@pytest.mark.parametrize(("patch", "symbol"), SYMBOLS)
def test_a_missing_symbol_is_named_and_nothing_is_changed(patch: Patch, symbol: str) -> None:
    owner = types.SimpleNamespace()
    for present in set(patch.symbols) - {symbol}:
        *parents, name = present.split(".")
        found = owner
        for parent in parents:
            vars(found).setdefault(parent, types.SimpleNamespace())
            found = getattr(found, parent)
        setattr(found, name, object())
    before = repr(owner)
    with pytest.raises(platform.PlatformError, match=re.escape(f"{patch.owner}.{symbol} does not exist")):
        patch(owner)
    assert repr(owner) == before


@pytest.mark.parametrize(
    "patch", [patch for patch in PATCHES if patch in (*patches.WITHOUT_CUDA, *patches.WITHOUT_TRANSFORMER_ENGINE)],
    ids=lambda patch: patch.change.__name__,
)  # fmt: skip
def test_a_patch_of_a_module_changes_only_symbols_that_it_lists(patch: Patch) -> None:
    owner = types.SimpleNamespace(Tensor=type("Tensor", (torch.Tensor,), {})) if patch.owner == "torch" else None
    changed = patch_programs.changes(patch, owner or upstream(patch.owner))
    listed = {symbol.partition(".")[0] for symbol in patch.symbols}
    assert changed and changed <= listed | ADDED.get(patch.change.__name__, set())


def test_a_repair_changes_only_symbols_that_it_lists(one_rank: dict[str, Any]) -> None:
    for patch in (*patch_programs.REPAIRS, optimizer.skip_exchange_of_one):
        assert one_rank["replaced"][patch.change.__name__] <= set(patch.symbols)


def test_a_product_that_the_router_no_longer_asks_for_is_named() -> None:
    router = types.SimpleNamespace(forward=lambda inp: inp)
    with pytest.raises(platform.PlatformError, match=r"moe_utils\.te_general_gemm does not exist"):
        patches.name_missing_product(types.SimpleNamespace(RouterGatingLinearFunction=router))


# What upstream does without the platform.


def test_upstream_needs_the_stand_in_for_torch() -> None:
    with pytest.raises(AssertionError, match="Torch not compiled with CUDA enabled"):
        upstream("megatron.core.utils", torch).GlobalMemoryBuffer().get_tensor([2], torch.float32, "any")
    assert upstream("megatron.core.utils").GlobalMemoryBuffer().get_tensor([2], torch.float32, "any").shape == (2,)


def test_upstream_asks_for_every_name_of_the_stand_in() -> None:
    """A name that it asks for no more can go from torch_stand_in.py."""
    (folder,) = importlib.import_module("megatron.core").__path__
    source = "\n".join(path.read_text() for path in Path(folder).rglob("*.py"))
    answered = {name for name in (*vars(CpuCuda), *vars(CpuCuda())) if not name.startswith("_")}
    assert answered <= set(re.findall(r"torch\.cuda\.(\w+)", source))
    assert set(FACTORIES) <= set(re.findall(r"torch\.(\w+)\(", source))


def test_upstream_calls_cuda_on_tensors(one_rank: dict[str, Any]) -> None:
    assert "Torch not compiled with CUDA enabled" in one_rank["gathered"], can_go(patches.keep_tensors_here)


def test_upstream_compiles_what_it_calls_jit_fused() -> None:
    assert upstream("megatron.core.jit").jit_fuser is torch.compile, can_go(patches.turn_compiling_off)


def test_upstream_asks_cuda_for_random_states(caplog: pytest.LogCaptureFixture) -> None:
    module = upstream("megatron.core.tensor_parallel.random")
    tracker = module.CudaRNGStatesTracker()
    tracker.add("one", 5)
    with (
        fault(patches.track_cpu_generator, AssertionError, "Torch not compiled with CUDA enabled"),
        tracker.fork("one"),
    ):
        pass
    module._get_cuda_rng_state = lambda **kwargs: torch.get_rng_state()
    module._set_cuda_rng_state = lambda state, **kwargs: torch.set_rng_state(state)
    with caplog.at_level(logging.WARNING), tracker.fork("one"):
        torch.rand(1)
    assert "CPU RNG state changed" in caplog.text, "the class CpuRNGStatesTracker is no longer needed: drop it"


def test_upstream_optimizer_refuses_cpu_parameters(one_rank: dict[str, Any]) -> None:
    assert "Received torch.FloatTensor" in one_rank["built"], can_go(patches.accept_cpu_parameters)


def test_upstream_gathers_unequal_parts_as_gloo_cannot(two_ranks: list[dict[str, Any]]) -> None:
    for rank in two_ranks:
        assert "invalid tensor size" in rank["gather"], can_go(patches.gather_unequal_parts)


def test_unequal_parts_are_exchanged_on_gloo(two_ranks: list[dict[str, Any]]) -> None:
    """Values and gradients by hand."""
    first, second = two_ranks
    whole = torch.cat([first["mine"], second["mine"]])
    assert torch.equal(first["whole"], whole) and torch.equal(second["whole"], whole)
    assert torch.equal(first["summed"], whole[:3] * 3) and torch.equal(second["summed"], whole[3:] * 3)
    # Each row was weighed by 1 and by 2, and its sum by 2 on the first rank and by 3 on the second.
    assert torch.equal(first["grad"], torch.full((3, 2), 6.0)) and torch.equal(second["grad"], torch.full((1, 2), 9.0))


def test_upstream_leaves_split_sizes_on_the_cpu_as_tensors(two_ranks: list[dict[str, Any]]) -> None:
    """Which the exchange of tokens then refuses."""
    module, sizes = upstream("megatron.core.transformer.moe.moe_utils"), torch.tensor([1, 2])
    assert torch.is_tensor(module.maybe_move_tensor_to_cpu(sizes, as_numpy=True)), can_go(
        patches.give_split_sizes_as_numpy
    )
    for rank in two_ranks:
        assert rank["all_to_all"].startswith("TypeError"), can_go(patches.give_split_sizes_as_numpy)
    patches.give_split_sizes_as_numpy(module)
    assert module.maybe_move_tensor_to_cpu(sizes, as_numpy=True).tolist() == [1, 2]


def test_upstream_router_needs_a_name_of_transformer_engine() -> None:
    module = upstream("megatron.core.transformer.moe.moe_utils")
    route = module.RouterGatingLinearFunction.apply
    arguments = (torch.ones(1, 2), torch.ones(3, 2), None, torch.float32)
    with fault(patches.name_missing_product, NameError, "te_general_gemm"):
        route(*arguments)
    patches.name_missing_product(module)
    assert route(*arguments).tolist() == [[2, 2, 2]]


# What upstream's optimizer and its checkpoint writers do by themselves.


def test_upstream_cannot_save_before_the_first_step(one_rank: dict[str, Any]) -> None:
    theirs, ours = one_rank["saved"]
    assert theirs.startswith("AssertionError"), can_go(optimizer_repairs.fill_initial_state)
    assert ours == ""


def test_upstream_cannot_load_the_state_of_a_parameter(one_rank: dict[str, Any]) -> None:
    """Two faults: it wants a step that no checkpoint has, and writes to leaves."""
    without_step, whole, ours = one_rank["loaded"]
    patch = optimizer_repairs.load_state_without_step
    assert without_step == "KeyError: 'step'", f"{can_go(patch)}, or its exception for steps"
    assert "leaf Variable that requires grad" in whole, f"{can_go(patch)}, or its no_grad"
    assert ours == ""


def test_upstream_counts_steps_in_one_tensor_after_loading(one_rank: dict[str, Any]) -> None:
    theirs, ours = one_rank["step_counts"]
    assert theirs > 1, can_go(optimizer_repairs.separate_step_counts)
    assert ours == 1


def test_upstream_shifts_what_stands_behind_a_padded_bucket(one_rank: dict[str, Any]) -> None:
    theirs, ours = one_rank["misplaced"]
    assert theirs > 0, can_go(optimizer_repairs.keep_bucket_padding)
    assert ours == 0


def test_upstream_exchanges_with_itself(one_rank: dict[str, Any]) -> None:
    theirs, ours = one_rank["exchanges"]
    assert theirs, can_go(optimizer.skip_exchange_of_one)
    assert not ours


def test_upstream_leaves_processes_of_a_killed_trainer() -> None:
    """The server of the queue of results, and a writer that waits.

    When the first has ended, drop `writer_processes.prepare_results_queue`; when the second has, drop
    `writer_processes.writers_end_with_parent`.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    trainer = context.Process(target=patch_programs.start_upstream_writers, args=(sender,))
    trainer.start()
    left = [psutil.Process(pid) for pid in receiver.recv()]
    os.kill(trainer.pid or 0, signal.SIGKILL)
    trainer.join()
    try:
        assert [process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in left] == [True, True]
    finally:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
