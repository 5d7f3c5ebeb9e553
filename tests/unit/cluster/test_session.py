"""Starting Ray leaves the driver's answer to SIGTERM as it was."""

from __future__ import annotations

import signal

import pytest
import ray

from hybridflow.cluster.session import private_folder, start_session, stop_session
from hybridflow.errors import PlacementError


@pytest.mark.parametrize("fails", [False, True])
def test_the_drivers_own_sigterm_handler_stays(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Ray 2.60 installs one that ends the process with code 15 and a stack of addresses."""

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if fails:
            raise RuntimeError("no port")

    def own(*_: object) -> None: ...

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = signal.signal(signal.SIGTERM, own)
    try:
        if fails:
            with pytest.raises(PlacementError, match=r"cannot start Ray on this machine \(.* cores\): no port"):
                start_session(1)
        else:
            start_session(1)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        stop_session()
        signal.signal(signal.SIGTERM, before)
    assert private_folder() is None
