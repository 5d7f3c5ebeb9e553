"""Messages that the parts of the reward stream send each other.

worker -> stream   Ready, ScoreReply, Bye
stream -> worker   Work, Stop
engine -> stream   Finished, Hello
stream -> engine   Accepted

A worker is known by its connection, whose name it chooses itself, at random, and keeps when the connection breaks. So
what it says needs no sender, and nobody speaks for another.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.types import ScoreRequest, Verdict
from hybridflow.wire.packed import PackedCompletion

MAX_CREDITS = 64
"""Most unanswered items that one worker may ask for; the ROUTER's high-water mark is set above it."""
MAX_NAME_CHARS = 200
"""Longest id of an engine or a worker."""
MAX_HOLDING = 16 * MAX_CREDITS
"""Ids in one Ready; a worker that was cut off may hold more than its credits for a while."""

Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]


class Ready(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """A worker is there and takes up to `credits` unanswered items. Repeated all the time, also while it scores."""

    worker_id: Name
    credits: int
    holding: Annotated[list[str], msgspec.Meta(max_length=MAX_HOLDING)] = []
    """Ids of the completions it has and has not answered: their leases are renewed."""

    def __post_init__(self) -> None:
        if not 1 <= self.credits <= MAX_CREDITS:
            raise ValueError(f"credits of {self.worker_id} are {self.credits}, must be 1 to {MAX_CREDITS}")


class ScoreReply(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """The verdict on one item of work."""

    completion_id: str
    verdict: Verdict


class Bye(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=3):
    """A worker leaves; what it has not answered goes to the others."""


class Task(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The part of a verifier's request that all completions of one prompt share."""

    data_source: str
    ability: str
    ground_truth: str
    question: str
    row: str = ""
    alternatives: list[str] = []


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """One completion to score. Task and text stay packed on their way from the engine to the verifier."""

    completion_id: str
    task: memoryview
    """A Task as msgpack, made once for all completions of a prompt."""
    text: memoryview
    """UTF-8."""

    @property
    def request(self) -> ScoreRequest:
        """Raises ProtocolError where the parts are none."""
        try:
            task = _tasks.decode(self.task)
            return ScoreRequest(
                completion_id=self.completion_id,
                data_source=task.data_source,
                ability=task.ability,
                ground_truth=task.ground_truth,
                text=str(self.text, "utf-8"),
                question=task.question,
                row=task.row,
                alternatives=task.alternatives,
            )
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError(f"malformed work on completion {self.completion_id}: {error}") from error


class Stop(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """The run is over: the worker ends."""


class Finished(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """One completion that an engine has decoded."""

    engine_id: Name
    number: int
    """The sender's own count; comes back in Accepted."""
    packed: PackedCompletion
    attempt: int = 0
    """Attempt of the lease under which it was decoded: tells a completion of a lost lease from one of the present."""


class Hello(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=2):
    """An engine asks where it stands; `number` comes back in the answer.

    Messages of one connection keep their order. So a completion that was sent before this and is not accepted when
    the answer arrives was lost with a connection, and is sent again.
    """

    engine_id: Name
    number: int


class Accepted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=1):
    """The stream has these completions: the engine may drop its copies."""

    numbers: list[int]
    window: int
    """Completions that the engine may have sent without their being accepted; 0 holds it back."""
    hello: int = 0
    """Number of the Hello that this answers; 0: none."""


FromWorker = Ready | ScoreReply | Bye
ToWorker = Work | Stop
FromEngine = Finished | Hello
ToEngine = Accepted
Message = FromWorker | ToWorker | FromEngine | ToEngine

_tasks = msgspec.msgpack.Decoder(Task)


def build_completion_id(group_id: str, index: int) -> str:
    """The id of completion `index` of a group: ("t00003-g0005", 2) -> "t00003-g0005-c02"."""
    return f"{group_id}-c{index:02d}"
