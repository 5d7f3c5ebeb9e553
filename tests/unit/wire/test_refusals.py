"""What is refused is told once a minute, with numbers."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from hybridflow.wire.refusals import INTERVAL_S, RefusalLog


def test_a_flood_is_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    counters: Counter[str] = Counter()
    log = RefusalLog(counters, logging.getLogger("refusals"))
    log.tell(0.0)
    for number in range(1000):
        counters["stranger"] += 1
        counters["requeued"] += 1  # no refusal
        log.tell(0.1 * number)
    counters["malformed_completion"] += 2
    log.examples["malformed_completion"] = "it was cut off"
    log.tell(2 * INTERVAL_S)
    told = [record.getMessage().split("must not take: ")[1] for record in caplog.records]
    assert told == ["stranger 1", "stranger 600", "malformed_completion 2 (the last: it was cut off), stranger 399"]
