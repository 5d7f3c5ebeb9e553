"""Rollout engines of a run as one: started side by side, given groups and weights, and kept alive.

Everything here runs in the driver's main thread, but `admit`, which the thread that receives completions calls. An
engine that dies or hangs is replaced while groups are decoded, in `poll`: its unfinished groups are leased to others,
and as soon as it answers again it gets the present weights. The trainer is idle then and can hand its weights out once
more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridflow.cluster.session import Slots
from hybridflow.errors import RolloutError
from hybridflow.observability.reporter import Reporter
from hybridflow.policy.engine_tokenizer import ENGINE_TOKENIZER, write_engine_tokenizer
from hybridflow.policy.load import load_tokenizer
from hybridflow.protocols import WeightSource
from hybridflow.rollout.driver.dispatcher import Dispatcher
from hybridflow.rollout.driver.engine_handle import EngineHandle
from hybridflow.rollout.driver.opening import RolloutSettings, create_handle
from hybridflow.rollout.driver.supervisor import LOOK_S, Supervisor
from hybridflow.rollout.driver.weight_sync import WeightSync
from hybridflow.rollout.engine.arguments import KEPT_BACK_TOKENS
from hybridflow.rollout.engine.model_folder import ENGINE_MODEL, write_engine_model
from hybridflow.types import GroupRequest, MemoryTag, RolloutReport, SamplingParams
from hybridflow.weights.reshard.placement import Engines
from hybridflow.weights.reshard.settings import engine_slots
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.messages import Finished


class EngineGroup:
    """Engines engine-0, engine-1, ...; `launch` starts them and `wait_ready` waits until all answer."""

    def __init__(self, settings: RolloutSettings, reporter: Reporter) -> None:
        """`reporter` is told which engines were lost, and what engines do right now."""
        self._settings = settings
        self._reporter = reporter
        self._dispatcher = Dispatcher()
        self._supervisor = Supervisor(self._dispatcher, settings.section.max_restarts, reporter)
        self._handles = self._supervisor.handles
        self._sampling: SamplingParams | None = None
        self._version: int | None = settings.initial_version
        self._source: WeightSource | None = None
        self._sync: WeightSync | None = None
        self._look_at = 0.0
        self._is_stopping = False

    # -------------------------------------------------------------------------------------------------- life cycle

    def launch(self, slots: Slots, hf_dir: Path, endpoint: Endpoint, log_directory: Path, placed: Engines = ()) -> None:
        """Starts the engines, the first in the slots that `placed` says; completions are sent to `endpoint`.

        They read a model directory of their own beside the logs, see `engine/model_folder.py`.
        """
        section = self._settings.section
        tokenizer = load_tokenizer(hf_dir, f"model {hf_dir}")
        hf_dir = write_engine_model(hf_dir, log_directory / ENGINE_MODEL, section.context_tokens)
        write_engine_tokenizer(tokenizer, hf_dir / ENGINE_TOKENIZER)
        for index, own in enumerate(engine_slots(section.num_engines, section.tp_size, placed)):
            self.add(create_handle(index, self._settings, slots, own, hf_dir, endpoint, log_directory))

    def add(self, handle: EngineHandle) -> None:
        """Takes in one more engine, which may still be starting."""
        self._handles[handle.name] = handle

    def wait_ready(self) -> None:
        """Returns when every engine answers.

        Raises RolloutError if one failed to start, or did not within `rollout.start_timeout_s`.
        """
        self._supervisor.wait_all()

    @property
    def actors(self) -> list[Any]:
        """Ray actors of the engines, in order."""
        return [handle.worker.actor for handle in self._handles.values()]

    @property
    def pids(self) -> list[int]:
        """Processes of all engines that have started."""
        return [pid for handle in self._handles.values() for pid in handle.pids]

    def num_moves(self) -> int:
        """Changes while engines get on with their work, or are started again. Called from any thread."""
        return sum(handle.num_moves + handle.num_restarts for handle in self._handles.values())

    def report(self) -> list[str]:
        """A line per engine that owes completions. Called from any thread."""
        return [
            f"{name} owes {num} completions" + ("" if self._handles[name].facts else ", and starts")
            for name, num in self.in_flight().items()
            if num
        ]

    def in_flight(self) -> dict[str, int]:
        """Completions that each engine owes."""
        return self._dispatcher.in_flight(self._handles)

    # ---------------------------------------------------------------------------------------------------- decoding

    def admit(self, message: Finished) -> bool:
        """Whether a finished completion counts, see `Dispatcher`. Called from any thread."""
        if not self._dispatcher.admit(message):
            return False
        self._handles[message.engine_id].num_restarts = 0
        return True

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        """Leases the groups to the engines; completions leave them each as soon as it ends.

        Raises RolloutError if no weights were published.
        """
        if self._version is None:
            raise RolloutError("the engines have no confirmed weights version: publish weights before generating")
        self._check_room(requests, sampling.max_new_tokens)
        self._dispatcher.add(requests, sampling.max_new_tokens)
        self._sampling = sampling
        self._is_stopping = False
        self._hand_out()

    def extend(self, requests: list[GroupRequest]) -> None:
        """Leases further groups of what was started, sampled alike, as soon as engines have room."""
        assert self._sampling is not None, "nothing was started"
        self._check_room(requests, self._sampling.max_new_tokens)
        self._dispatcher.extend(requests)
        self._hand_out()

    def _check_room(self, requests: list[GroupRequest], max_new_tokens: int) -> None:
        """RolloutError for a completion that no engine could hold whole: SGLang would cut it short without a word."""
        longest = max((len(request.prompt.token_ids) for request in requests), default=0) + max_new_tokens
        for handle in self._handles.values():
            if handle.facts is not None and handle.facts.kv_cache_tokens < longest + KEPT_BACK_TOKENS:
                raise RolloutError(
                    f"the KV pool of {handle.name} holds {handle.facts.kv_cache_tokens} tokens, and the longest prompt "
                    f"with max_new_tokens = {max_new_tokens} takes {longest}, with {KEPT_BACK_TOKENS} more that SGLang "
                    "keeps back. Raise rollout.kv_cache_tokens (generate: --kv-cache-tokens), give the engine more "
                    "memory, or lower one of the two"
                )

    def poll(self) -> RolloutReport | None:
        """Keeps the engines busy and alive; the report once every completion has been admitted, None before.

        Raises what an engine refused to do, and RolloutError for an engine that does not stay alive.
        """
        if time.monotonic() >= self._look_at:
            self._supervisor.look_after()
            self._serve_late()
            self._say_progress()
            if self._is_stopping:
                self._abort_in_flight()
            self._look_at = time.monotonic() + LOOK_S
        self._hand_out()
        return self._dispatcher.report(self._supervisor.take_events)

    def stop(self) -> None:
        """Ends what is under way: each completion is delivered with what it has, finish_reason "abort", or not begun.

        `poll` goes on until all have arrived; `take_dropped` names those that will not.
        """
        self._is_stopping = True
        self._abort_in_flight()

    def take_dropped(self) -> list[str]:
        """Ids of completions given up since the last call: no engine had them when the step was stopped."""
        return self._dispatcher.take_dropped()

    def _abort_in_flight(self) -> None:
        """Repeated until nothing is in flight: a lease may reach its engine after the first abort."""
        self._dispatcher.drop_queued()
        owed = self.in_flight()
        self._supervisor.call([handle for handle in self._supervisor.started() if owed[handle.name]], "abort")

    def _hand_out(self) -> None:
        if self._sampling is None or self._is_stopping:
            return
        for name, given in self._dispatcher.assign().items():
            self._handles[name].submit(given, self._sampling)

    def _say_progress(self) -> None:
        left, queued = self._dispatcher.num_left()
        if left:
            engines = ", ".join(
                f"{name} {num}" if self._handles[name].facts else f"{name} starting"
                for name, num in self.in_flight().items()
            )
            self._reporter.progress(f"{left} completions to come ({engines}); {queued} groups queued")

    # ------------------------------------------------------------------------------------------ weights and memory

    def load_weights(self, source: WeightSource, version: int) -> None:
        """Gives every engine these weights; returns when at least one has confirmed them.

        An engine that is starting, or dies meanwhile, gets them when it is there again, in a sync of its own; until
        then it serves nothing.
        """
        self._source, self._version = source, version
        self._supervisor.close_all()
        while not self._load(self._supervisor.wait_any(), version):
            pass

    def num_receivers(self) -> int:
        """Ranks of engines that take part in the weight sync under way, or in the last one."""
        return self._sync.num_alive * self._settings.section.tp_size if self._sync else 0

    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        """Every engine gives this memory back; returns the bytes, None where only the device can tell (CUDA).

        An engine without weights serves nothing until `load_weights`. One that dies meanwhile, or starts, has it all.
        """
        if "weights" in tags:
            self._supervisor.close_all()
        freed: list[int | None] = self._supervisor.call(self._supervisor.started(), "release", list(tags))
        return None if any(one is None for one in freed) else sum(one or 0 for one in freed)

    def taken_bytes(self, tags: Sequence[MemoryTag]) -> int:
        """The most that a rank took of its GPU, as SGLang reports it; 0 on a CPU."""
        taken = [handle.facts.taken_bytes for handle in self._handles.values() if handle.facts]
        return max(sum(one.get(tag, 0) for tag in tags) for one in taken)

    def resume(self, tags: Sequence[MemoryTag]) -> None:
        """Every engine takes this memory again, where it was released."""
        self._supervisor.call(self._supervisor.started(), "resume", list(tags))

    def _serve_late(self) -> None:
        """Gives engines that have started since the last weight sync the present weights."""
        late = [handle for handle in self._supervisor.started() if handle.version is None]
        if late and self._version is not None:
            for name in self._load(late, self._version):
                self._reporter.note(f"{name} has weights version {self._version} and takes part again")

    def _load(self, handles: list[EngineHandle], version: int) -> list[str]:
        """One weight sync; names of the engines that confirmed it and may decode."""
        assert self._source is not None
        self._sync = WeightSync(handles, version, self._reporter)
        result = self._sync.run(self._source)
        for name, reason in result.died.items():
            self._supervisor.replace(self._handles[name], reason)
        for name in result.confirmed:
            self._supervisor.open(self._handles[name], version)
        return list(result.confirmed)


class RolloutLife:
    """The engines as a source of the watchdog."""

    def __init__(self, group: EngineGroup) -> None:
        self._group = group
        self._num_moves = 0

    def look(self) -> bool:
        """Whether an engine got on with its work."""
        before, self._num_moves = self._num_moves, self._group.num_moves()
        return self._num_moves != before

    def report(self) -> list[str]:
        return self._group.report()
