"""Engines and trainer on one device: who opens first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hybridflow.runtime.open_order import open_in_order
from hybridflow.types import MemoryTag


class Engines:
    def __init__(self, size: int | None) -> None:
        self.events: list[str] = []
        self._size = size

    def wait_ready(self) -> None:
        self.events.append("engines are ready")

    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        self.events.append(f"engines release {' '.join(tags)}")
        return self._size

    def taken_bytes(self, tags: Sequence[MemoryTag]) -> int:
        return 10 + len(tags)


@pytest.mark.parametrize("size", [None, 7])
def test_on_a_shared_device_engines_are_ready_and_released_before_the_trainer_loads(size: int | None) -> None:
    engines = Engines(size)
    released = open_in_order(engines, lambda: engines.events.append("trainer loads"), shared=True)  # pyright: ignore[reportArgumentType]
    assert engines.events == [
        "engines are ready",
        "engines release kv_cache",
        "engines release weights cuda_graph",
        "trainer loads",
    ]
    said_by_sglang = {"kv_cache": 11, "weights": 12}
    assert released == (said_by_sglang if size is None else {"kv_cache": size, "weights": size})


def test_elsewhere_they_start_side_by_side() -> None:
    engines = Engines(None)
    assert open_in_order(engines, lambda: engines.events.append("trainer loads"), shared=False) == {}  # pyright: ignore[reportArgumentType]
    assert engines.events == ["trainer loads", "engines are ready"]
