"""All rollout engines as one: they are started side by side, given the same weights, and kept alive.

Everything here runs in the driver's main thread, but `admit`, which the thread that receives completions calls. An
engine that dies or hangs is killed, its unfinished groups are leased to others, and it is started again; as soon as it
answers it gets the present weights, and takes part again. That happens in `poll`, while groups are decoded: the trainer
is idle then and can hand its weights out once more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hybridflow.cluster.session import Slots
from hybridflow.errors import RolloutError
from hybridflow.policy.engine_tokenizer import ENGINE_TOKENIZER, write_engine_tokenizer
from hybridflow.policy.load import load_tokenizer
from hybridflow.rollout.arguments import KEPT_BACK_TOKENS
from hybridflow.rollout.engine_model import ENGINE_MODEL, write_engine_model
from hybridflow.rollout.leased_step import LeasedStep
from hybridflow.rollout.member import EngineDiedError, EngineMember
from hybridflow.rollout.opening import RolloutSettings, create_member
from hybridflow.rollout.weight_session import WeightSession
from hybridflow.types import GroupRequest, MemoryTag, RolloutReport, SamplingParams
from hybridflow.weights.manifest import TensorEntry, compare_manifests
from hybridflow.weights.reshard.placement import Engines
from hybridflow.weights.reshard.settings import engine_slots
from hybridflow.wire.endpoint import Endpoint
from hybridflow.wire.messages import Finished

LOOK_S = 0.1
"""Shortest time between two looks at all engines."""

StreamWeights = Callable[[int], Iterable[Any]]
"""Makes references to the buckets of a weights version, as often as it is asked."""


class RolloutGroup:
    """Engines engine-0, engine-1, ...; `launch` starts them and `wait_ready` waits until all answer."""

    def __init__(self, settings: RolloutSettings, note: Callable[[str], None], progress: Callable[[str], None]) -> None:
        """`note` is told what a user must know, `progress` what is going on right now."""
        self._settings = settings
        self._note = note
        self._progress = progress
        self._members: dict[str, EngineMember] = {}
        self._leased = LeasedStep()
        self._events: Counter[str] = Counter()
        self._sampling: SamplingParams | None = None
        self._version: int | None = settings.initial_version
        self._stream_weights: StreamWeights | None = None
        self._manifest: list[TensorEntry] = []
        self._session: WeightSession | None = None
        self._look_at = 0.0
        self._is_stopping = False
        self._dropped: list[str] = []

    # -------------------------------------------------------------------------------------------------- life cycle

    def launch(self, slots: Slots, hf_dir: Path, endpoint: Endpoint, log_directory: Path, placed: Engines = ()) -> None:
        """Starts the engines, the first in the slots that `placed` says; completions are sent to `endpoint`.

        They read a model directory of their own beside the logs, see engine_model.py.
        """
        section = self._settings.section
        tokenizer = load_tokenizer(hf_dir, f"model {hf_dir}")
        hf_dir = write_engine_model(hf_dir, log_directory / ENGINE_MODEL, section.context_tokens)
        write_engine_tokenizer(tokenizer, hf_dir / ENGINE_TOKENIZER)
        for index, own in enumerate(engine_slots(section.num_engines, section.tp_size, placed)):
            member = create_member(index, self._settings, slots, own, hf_dir, endpoint, log_directory)
            self._members[member.name] = member

    def wait_ready(self) -> None:
        """Returns when every engine answers.

        Raises RolloutError if one failed to start, or did not within `rollout.start_timeout_s`.
        """
        starting = list(self._members.values())
        while starting:
            for member in [member for member in starting if member.check_ready(timeout_s=LOOK_S)]:
                starting.remove(member)
                self._welcome(member)

    @property
    def actors(self) -> list[Any]:
        return [member.worker.actor for member in self._members.values()]

    @property
    def pids(self) -> list[int]:
        """Processes of all engines that have started."""
        return [pid for member in self._members.values() for pid in member.pids]

    def engine_pids(self, name: str) -> list[int]:
        """Processes of one engine, its actor first; none while it starts."""
        return self._members[name].pids

    def num_moves(self) -> int:
        """Changes while engines get on with their work, or are started anew. Called from any thread."""
        return sum(member.num_moves + member.num_restarts for member in self._members.values())

    def report(self) -> list[str]:
        """A line per engine that owes completions. Called from any thread."""
        return [
            f"{name} owes {num} completions" + ("" if self._members[name].facts else ", and starts")
            for name, num in self.in_flight().items()
            if num
        ]

    def in_flight(self) -> dict[str, int]:
        """By engine: completions that it owes."""
        return self._leased.in_flight(self._members)

    def _welcome(self, member: EngineMember) -> None:
        num_ready = sum(other.facts is not None for other in self._members.values())
        self._note(
            f"{member.name} is ready after {member.seconds_since_start:.0f} s ({num_ready} of {len(self._members)})"
        )
        if member.version is not None:
            self._open(member, member.version)

    def _open(self, member: EngineMember, version: int) -> None:
        assert member.facts is not None
        member.version = version
        self._leased.engine_up(member.name, member.facts.kv_cache_tokens)

    # ---------------------------------------------------------------------------------------------------- decoding

    def admit(self, message: Finished) -> bool:
        """Whether a finished completion counts, see `leases`. Called from any thread."""
        if not self._leased.admit(message):
            return False
        self._members[message.engine_id].num_restarts = 0
        return True

    def start(self, requests: list[GroupRequest], sampling: SamplingParams) -> None:
        """Leases the groups to the engines; completions leave them each as soon as it ends.

        Raises RolloutError if no weights were published.
        """
        if self._version is None:
            raise RolloutError("the engines have no confirmed weights version: publish weights before generating")
        self._check_room(requests, sampling.max_new_tokens)
        self._leased.begin(requests, sampling.max_new_tokens)
        self._sampling = sampling
        self._is_stopping = False
        self._hand_out()

    def _check_room(self, requests: list[GroupRequest], max_new_tokens: int) -> None:
        """RolloutError for a completion that no engine could hold whole: SGLang would cut it short without a word."""
        longest = max((len(request.prompt.token_ids) for request in requests), default=0) + max_new_tokens
        for member in self._members.values():
            if member.facts is not None and member.facts.kv_cache_tokens < longest + KEPT_BACK_TOKENS:
                raise RolloutError(
                    f"the KV pool of {member.name} holds {member.facts.kv_cache_tokens} tokens, and the longest prompt "
                    f"with max_new_tokens = {max_new_tokens} takes {longest}, with {KEPT_BACK_TOKENS} more that SGLang "
                    "keeps back. Raise rollout.kv_cache_tokens (generate: --kv-cache-tokens), give the engine more "
                    "memory, or lower one of the two"
                )

    def poll(self) -> RolloutReport | None:
        """Keeps the engines busy and alive; the report once every completion has been admitted, None before.

        Raises what an engine refused to do, and RolloutError for an engine that does not stay alive.
        """
        if time.monotonic() >= self._look_at:
            self._look_after()
            if self._is_stopping:
                self._abort_in_flight()
            self._look_at = time.monotonic() + LOOK_S
        self._hand_out()
        return self._leased.report(self._take_events)

    def _take_events(self) -> Counter[str]:
        events, self._events = self._events, Counter()
        return events

    def stop(self) -> None:
        """Ends what is under way: each completion is delivered with what it has, finish_reason "abort", or not begun.

        `poll` goes on until all have arrived; `take_dropped` names those that will not.
        """
        self._is_stopping = True
        self._abort_in_flight()

    def take_dropped(self) -> list[str]:
        """Ids of completions given up since the last call: no engine had them when the step was stopped."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def _abort_in_flight(self) -> None:
        """Repeated until nothing is in flight: a lease may reach its engine after the first abort."""
        self._dropped += self._leased.drop_queued()
        busy = [self._members[name] for name, num in self.in_flight().items() if num]
        for member, call in [(member, member.worker.call("abort")) for member in busy if member.facts]:
            try:
                member.result(call)
            except EngineDiedError as error:
                self._replace(member, str(error))

    def _hand_out(self) -> None:
        if self._sampling is None or self._is_stopping:
            return
        for name, given in self._leased.assign().items():
            self._members[name].submit(given, self._sampling)

    # --------------------------------------------------------------------------------------------------- supervision

    def _look_after(self) -> None:
        """Replaces engines that are gone or hang, and gives those that have started the present weights."""
        for member in self._members.values():
            if member.facts is None:
                self._welcome_if_started(member)
                continue
            try:
                member.check_alive()
            except EngineDiedError as error:
                self._replace(member, str(error))
        late = [member for member in self._members.values() if member.facts is not None and member.version is None]
        if late and self._version is not None:
            for name, entries in self._load(late, self._version).items():
                compare_manifests(self._manifest, entries, self._version)
                self._note(f"{name} has weights version {self._version} and takes part again")
        self._say_progress()

    def _welcome_if_started(self, member: EngineMember) -> None:
        try:
            has_started = member.check_ready()
        except RolloutError as error:
            self._replace(member, f"did not start: {error}")
            return
        if has_started:
            self._welcome(member)

    def _replace(self, member: EngineMember, reason: str) -> None:
        """Kills the engine, gives its groups to others and starts it again."""
        lost = self._leased.engine_down(member.name)
        member.end()
        self._events["restarted_engine"] += 1
        member.num_restarts += 1
        pid = f" (process {member.facts.pid})" if member.facts else ""
        if member.num_restarts > self._settings.section.max_restarts:
            raise RolloutError(
                f"{member.name}{pid} {reason}. It has been started {member.num_restarts} times without delivering "
                f"anything, above rollout.max_restarts = {self._settings.section.max_restarts}. Its log is in the run "
                f"folder under logs/; --resume continues from the last checkpoint"
            )
        self._note(f"{member.name}{pid} {reason}; {len(lost)} groups are leased again, the engine is started again")
        member.start()

    def _say_progress(self) -> None:
        left, queued = self._leased.num_left()
        if left:
            engines = ", ".join(
                f"{name} {num}" if self._members[name].facts else f"{name} starting"
                for name, num in self.in_flight().items()
            )
            self._progress(f"{left} completions to come ({engines}); {queued} groups queued")

    # ------------------------------------------------------------------------------------------------------ weights

    def load_weights(self, stream_weights: StreamWeights, version: int) -> dict[str, list[TensorEntry]]:
        """Gives every engine these weights; returns what each confirmed, by engine, of at least one.

        An engine that is starting, or dies meanwhile, gets them when it is there again; until then it serves nothing.
        """
        self._stream_weights, self._version = stream_weights, version
        self._close_all()
        while True:
            started = self._wait_for_any()
            confirmed = self._load(started, version)
            if confirmed:
                self._manifest = next(iter(confirmed.values()))
                return confirmed

    def num_receivers(self) -> int:
        """Ranks of engines that take part in the update under way, or in the last one."""
        return self._session.num_alive * self._settings.section.tp_size if self._session else 0

    def release(self, tags: Sequence[MemoryTag]) -> int | None:
        """Every engine gives this memory back; returns the bytes, None where only the device can tell (CUDA).

        An engine without weights serves nothing until `load_weights`. One that dies meanwhile, or starts, has it all.
        """
        if "weights" in tags:
            self._close_all()
        freed: list[int | None] = self._call_all("release", list(tags))
        return None if any(one is None for one in freed) else sum(one or 0 for one in freed)

    def taken_bytes(self, tags: Sequence[MemoryTag]) -> int:
        """The most that a rank took of its GPU, as SGLang reports it; 0 on a CPU."""
        taken = [member.facts.taken_bytes for member in self._members.values() if member.facts]
        return max(sum(one.get(tag, 0) for tag in tags) for one in taken)

    def resume(self, tags: Sequence[MemoryTag]) -> None:
        """Every engine takes this memory again, where it was released."""
        self._call_all("resume", list(tags))

    def _call_all(self, method: str, *args: Any) -> list[Any]:
        results: list[Any] = []
        for member, call in [(m, m.worker.call(method, *args)) for m in self._members.values() if m.facts]:
            try:
                results.append(member.result(call))
            except EngineDiedError as error:
                self._replace(member, str(error))
        return results

    def _close_all(self) -> None:
        """No engine serves anything until it has confirmed weights again."""
        for member in self._members.values():
            self._leased.engine_down(member.name)
            member.version = None

    def _load(self, members: list[EngineMember], version: int) -> dict[str, list[TensorEntry]]:
        assert self._stream_weights is not None
        self._session = WeightSession(members, version, self._progress)
        result = self._session.load(self._stream_weights(version))
        for name, reason in result.died.items():
            self._replace(self._members[name], reason)
        for name in result.confirmed:
            self._open(self._members[name], version)
        return result.confirmed

    def _wait_for_any(self) -> list[EngineMember]:
        """Engines that have started; where none has, waits for the first."""
        while True:
            for member in [member for member in self._members.values() if member.facts is None]:
                self._welcome_if_started(member)
            started = [member for member in self._members.values() if member.facts is not None]
            if started:
                return started
            time.sleep(LOOK_S)


class RolloutLife:
    """The engines as a source of the watchdog."""

    def __init__(self, group: RolloutGroup) -> None:
        self._group = group
        self._num_moves = 0

    def look(self) -> bool:
        """Whether an engine got on with its work."""
        before, self._num_moves = self._num_moves, self._group.num_moves()
        return self._num_moves != before

    def report(self) -> list[str]:
        return self._group.report()
