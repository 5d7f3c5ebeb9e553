"""Supervision of the engines of a run: one that dies or hangs is killed, and started again.

What a lost engine owes goes back to the dispatcher, which leases it to others. An engine serves nothing from the moment
it is lost until it has confirmed weights again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from hybridflow.errors import RolloutError
from hybridflow.observability.reporter import Reporter
from hybridflow.rollout.driver.dispatcher import Dispatcher
from hybridflow.rollout.driver.engine_handle import EngineDiedError, EngineHandle

LOOK_S = 0.1
"""Shortest time between two looks at all engines."""


class Supervisor:
    """Engines by name, in the order in which they were added.

    Args:
        max_restarts: As `rollout.max_restarts`.
        reporter: Is told which engines were lost and start again.
    """

    def __init__(self, dispatcher: Dispatcher, max_restarts: int, reporter: Reporter) -> None:
        self.handles: dict[str, EngineHandle] = {}
        self._dispatcher = dispatcher
        self._max_restarts = max_restarts
        self._reporter = reporter
        self._events: Counter[str] = Counter()

    def started(self) -> list[EngineHandle]:
        """Engines that answer."""
        return [handle for handle in self.handles.values() if handle.facts is not None]

    def take_events(self) -> Counter[str]:
        """Restarts since the last call."""
        events, self._events = self._events, Counter()
        return events

    # ------------------------------------------------------------------------------------------------------- start

    def wait_all(self) -> None:
        """Returns when every engine answers; RolloutError for one that failed to start, or took too long."""
        starting = list(self.handles.values())
        while starting:
            for handle in [handle for handle in starting if handle.check_ready(timeout_s=LOOK_S)]:
                starting.remove(handle)
                self._welcome(handle)

    def wait_any(self) -> list[EngineHandle]:
        """Engines that have started; where none has, waits for the first."""
        while True:
            for handle in [handle for handle in self.handles.values() if handle.facts is None]:
                self._welcome_if_started(handle)
            if started := self.started():
                return started
            time.sleep(LOOK_S)

    def _welcome_if_started(self, handle: EngineHandle) -> None:
        try:
            has_started = handle.check_ready()
        except RolloutError as error:
            self.replace(handle, f"did not start: {error}")
            return
        if has_started:
            self._welcome(handle)

    def _welcome(self, handle: EngineHandle) -> None:
        self._reporter.note(
            f"{handle.name} is ready after {handle.seconds_since_start:.0f} s "
            f"({len(self.started())} of {len(self.handles)})"
        )
        if handle.version is not None:
            self.open(handle, handle.version)

    # -------------------------------------------------------------------------------------------------------- watch

    def look_after(self) -> None:
        """Replaces engines that are gone or hang, and notices those that have started."""
        for handle in self.handles.values():
            if handle.facts is None:
                self._welcome_if_started(handle)
                continue
            try:
                handle.check_alive()
            except EngineDiedError as error:
                self.replace(handle, str(error))

    def replace(self, handle: EngineHandle, reason: str) -> None:
        """Kills the engine, gives its groups to others and starts it again.

        Raises RolloutError for one that has not delivered anything in `max_restarts` starts.
        """
        lost = self._dispatcher.engine_down(handle.name)
        handle.end()
        self._events["restarted_engine"] += 1
        handle.num_restarts += 1
        pid = f" (process {handle.facts.pid})" if handle.facts else ""
        if handle.num_restarts > self._max_restarts:
            raise RolloutError(
                f"{handle.name}{pid} {reason}. It has been started {handle.num_restarts} times without delivering "
                f"anything, above rollout.max_restarts = {self._max_restarts}. Its log is in the run "
                f"folder under logs/; --resume continues from the last checkpoint"
            )
        self._reporter.note(
            f"{handle.name}{pid} {reason}; {len(lost)} groups are leased again, the engine is started again"
        )
        handle.start()

    # -------------------------------------------------------------------------------------------------------- serve

    def open(self, handle: EngineHandle, version: int) -> None:
        """The engine has confirmed this weights version: it may decode."""
        assert handle.facts is not None
        handle.version = version
        self._dispatcher.engine_up(handle.name, handle.facts.kv_cache_tokens)

    def close_all(self) -> None:
        """No engine serves anything until it has confirmed weights again."""
        for handle in self.handles.values():
            self._dispatcher.engine_down(handle.name)
            handle.version = None

    def call(self, handles: Iterable[EngineHandle], method: str, *args: Any) -> list[Any]:
        """Calls a method of these engines side by side; an engine that dies is replaced, and leaves no result."""
        results: list[Any] = []
        for handle, call in [(handle, handle.worker.call(method, *args)) for handle in handles]:
            try:
                results.append(handle.result(call))
            except EngineDiedError as error:
                self.replace(handle, str(error))
        return results
