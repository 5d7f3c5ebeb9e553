"""What the parts of the reward stream say to each other.

worker -> stream   Ready, ScoreReply, Bye
stream -> worker   Work, Stop
engine -> stream   Finished
"""

from __future__ import annotations

import msgspec

from hybridflow.types import Completion, ScoreRequest, Verdict

MAX_CREDITS = 64
"""Most unanswered items that one worker may ask for; the ROUTER's high-water mark is set above it."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """A worker takes up to `credits` unanswered items. Repeated while it is idle; a repeat changes nothing."""

    worker_id: str
    credits: int

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
    completion: Completion
    attempt: int = 0
    """Of the lease under which it was decoded: tells a completion of a lost lease from one of the present."""

    def __post_init__(self) -> None:
        num_tokens, num_logprobs = len(self.completion.token_ids), len(self.completion.rollout_logprobs)
        if num_tokens != num_logprobs:
            raise ValueError(f"{self.completion.completion_id}: {num_tokens} tokens but {num_logprobs} logprobs")


FromWorker = Ready | ScoreReply | Bye
ToWorker = Work | Stop
FromEngine = Finished
Message = FromWorker | ToWorker | FromEngine


def build_completion_id(group_id: str, index: int) -> str:
    """The id of completion `index` of a group: ("t00003-g0005", 2) -> "t00003-g0005-c02"."""
    return f"{group_id}-c{index:02d}"
