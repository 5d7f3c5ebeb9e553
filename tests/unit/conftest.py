"""Unit tests run in one process: none may start Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_ray() -> Iterator[None]:
    """`ray.init` raises, but not for tests elsewhere that the same process runs later."""
    import ray

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test started Ray")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", refuse)
        yield
