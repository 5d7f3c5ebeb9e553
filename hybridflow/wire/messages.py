"""What the parts of the reward stream say to each other.

worker -> stream   Ready, ScoreReply, Bye
stream -> worker   Work, Stop
engine -> stream   Finished, Hello
stream -> engine   Accepted
"""

from __future__ import annotations

import msgspec

from hybridflow.types import ScoreRequest, Verdict
from hybridflow.wire.packed import PackedCompletion

MAX_CREDITS = 64
"""Most unanswered items that one worker may ask for; the ROUTER's high-water mark is set above it."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A worker is there and takes up to `credits` unanswered items. Repeated all the time, also while it scores."""

    worker_id: str
    process: str
    """Tells a process that took over the id of a dead one from the same process on a new connection."""
    credits: int
    holding: list[str] = []
    """Ids of the completions it has and has not answered: their leases are renewed."""

    def __post_init__(self) -> None:
        if not 1 <= self.credits <= MAX_CREDITS:
            raise ValueError(f"credits of {self.worker_id} are {self.credits}, must be 1 to {MAX_CREDITS}")


class ScoreReply(msgspec.Struct, frozen=True, tag="reply"):
    """The verdict on one item of work."""

    worker_id: str
    completion_id: str
    verdict: Verdict


class Bye(msgspec.Struct, frozen=True, tag="bye"):
    """A worker leaves; what it has not answered goes to the others."""

    worker_id: str


class Work(msgspec.Struct, frozen=True, tag="work"):
    """One completion to score."""

    request: ScoreRequest


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """The run is over: the worker ends."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """One completion that an engine has decoded."""

    engine_id: str
    number: int
    """The sender's own count; comes back in Accepted."""
    packed: PackedCompletion
    attempt: int = 0
    """Of the lease under which it was decoded: tells a completion of a lost lease from one of the present."""


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """An engine asks where it stands; `number` comes back in the answer.

    Messages of one connection keep their order. So a completion that was sent before this and is not accepted when
    the answer arrives was lost with a connection, and is sent again.
    """

    engine_id: str
    number: int


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
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


def build_completion_id(group_id: str, index: int) -> str:
    """The id of completion `index` of a group: ("t00003-g0005", 2) -> "t00003-g0005-c02"."""
    return f"{group_id}-c{index:02d}"
