"""Log lines carry role, rank and step."""

from __future__ import annotations

import logging

import pytest

from hybridflow.observability import log
from hybridflow.observability.log import configure, set_step


@pytest.fixture(autouse=True)
def restored_loggers():
    loggers = [logging.getLogger(name) for name in log.OWN_LOGGERS]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    set_step(None)


def test_lines_name_role_rank_and_step(capsys: pytest.CaptureFixture[str]) -> None:
    configure("train", "info", rank=1)
    logger = logging.getLogger("hybridflow.trainer.core")
    logger.info("before")
    set_step(7)
    logger.warning("took %d s", 3)
    logger.debug("unseen")
    logging.getLogger("megatron_ext.model.policy_model").info("other package")
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "INFO  train[1] | before",
        "WARNING train[1] step 7 | took 3 s",
        "INFO  train[1] step 7 | other package",
    ]


def test_configuring_again_does_not_repeat_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure("driver")
    configure("driver", "DEBUG")
    logging.getLogger("hybridflow").debug("once")
    assert capsys.readouterr().err.count("once") == 1


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        configure("driver", "loud")
