"""The queue of checkpoint writers' results: order, size, and processes that end before anyone reads."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import queue
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from megatron_ext.checkpoint.writer_processes import ResultsQueue

FORK = multiprocessing.get_context("fork")
LARGE = bytes(2**20)
"""More than any pipe holds."""


def put_in_child(results: ResultsQueue, item: Any) -> None:
    """From a forked process that has ended when this returns."""
    child = FORK.Process(target=results.put, args=(item,))
    child.start()
    child.join()
    assert child.exitcode == 0


def open_memfds() -> set[int]:
    """The inodes of this process's open queues; not their descriptors, which another thread's file can take over."""
    inodes = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor, or one closed since
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:results"):
                inodes.add(os.stat(f"/proc/self/fd/{name}").st_ino)
    return inodes


def test_items_come_in_the_order_of_their_puts() -> None:
    results = ResultsQueue()
    results.put({0: ["first"]})
    results.put(None)
    assert results.get_nowait() == {0: ["first"]}
    assert results.get_nowait() is None
    with pytest.raises(queue.Empty):
        results.get_nowait()
    results.put("later")
    assert results.get_nowait() == "later"


def test_a_writer_can_end_before_its_large_result_is_read() -> None:
    results = ResultsQueue()
    put_in_child(results, LARGE)
    put_in_child(results, RuntimeError("disk full"))
    assert results.get_nowait() == LARGE
    assert str(results.get_nowait()) == "disk full"


def test_a_process_that_was_sent_the_queue_puts_to_the_same() -> None:
    """As upstream's persistent writer, which is spawned and gets the queue with each request."""
    results = ResultsQueue()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(results.put, ["from afar"]).result()
    assert results.get_nowait() == ["from afar"]


def test_a_dropped_queue_gives_its_memory_back() -> None:
    results = ResultsQueue()
    inode = os.fstat(results.fileno()).st_ino
    assert inode in open_memfds()
    del results
    gc.collect()
    assert inode not in open_memfds()
