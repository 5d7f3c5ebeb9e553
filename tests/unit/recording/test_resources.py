"""Memory of a process tree: children count, shared memory counts once, a gone process counts nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from hybridflow.recording.resources import PeakMemory

MIB_IN_GIB = 1 / 1024


def start(code: str) -> subprocess.Popen[str]:
    """A Python process that prints a line once it is ready and then waits for its stdin to close."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)


def test_a_child_counts_while_it_lives_and_the_peak_stays() -> None:
    memory = PeakMemory()
    before = memory.sample()
    child = start("import sys; x = bytearray(b'1') * (200 << 20); print('ready', flush=True); sys.stdin.read()")
    during = memory.sample()
    end(child)
    after = memory.sample()
    assert during - before == pytest.approx(205 * MIB_IN_GIB, abs=25 * MIB_IN_GIB)
    assert after - before < 25 * MIB_IN_GIB
    assert memory.peak_gib == during


def test_shared_memory_counts_once() -> None:
    """Three processes that share 200 MiB hold 200 MiB, not 600."""
    tree = start(
        """
        import mmap, os, sys
        shared = mmap.mmap(-1, 200 << 20)
        shared.write(b'1' * (200 << 20))
        readiness, ready = os.pipe()
        for _ in range(2):
            if os.fork() == 0:
                sum(shared[index] for index in range(0, 200 << 20, 4096))
                os.write(ready, b'1')
                sys.stdin.read()
                os._exit(0)
        os.read(readiness, 1), os.read(readiness, 1)
        print('ready', flush=True)
        sys.stdin.read()
        """
    )
    memory = PeakMemory(tree.pid)
    if memory.method != "pss":
        end(tree)
        pytest.skip("this kernel does not tell proportional set sizes")
    total = memory.sample()
    end(tree)
    assert total == pytest.approx(215 * MIB_IN_GIB, abs=30 * MIB_IN_GIB)


def test_the_thread_samples_and_a_dead_root_counts_nothing() -> None:
    child = start("import sys; print('ready', flush=True); sys.stdin.read()")
    with PeakMemory(child.pid, period_s=0.01) as memory:
        end(child)
    assert memory.sample() == 0.0
    assert 0.0 <= memory.peak_gib < 100 * MIB_IN_GIB
