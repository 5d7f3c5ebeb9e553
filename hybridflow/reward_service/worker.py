"""The loop of a reward worker: take work, verify, reply."""

from __future__ import annotations

import logging
from collections.abc import Callable

from hybridflow.errors import RewardError
from hybridflow.types import ScoreRequest, Unknown, Verdict
from hybridflow.wire.messages import MAX_CREDITS, Stop
from hybridflow.wire.worker_channel import WorkerChannel

ANNOUNCE_INTERVAL_S = 1.0
"""An idle worker says that it is there this often."""

_logger = logging.getLogger(__name__)


class RewardWorkerLoop:
    """Scores what the stream hands out until it is told to stop.

    A verifier that raises costs its item a verdict (Unknown), never the worker. One that hangs holds this worker's
    credits: the other workers go on, and the supervisor decides when the worker is lost.

    Args:
        endpoint: `RewardStream.endpoint_workers`.
        worker_id: Unique among live workers; a restarted worker may take over the id of the dead one.
        verify: Gives the verdict on one request.
        credits: Unanswered items that this worker holds at most, 1 to MAX_CREDITS; 2 or more hide the round trip.
    """

    def __init__(self, endpoint: str, worker_id: str, verify: Callable[[ScoreRequest], Verdict], credits: int) -> None:
        if not 1 <= credits <= MAX_CREDITS:
            raise RewardError(f"credits of {worker_id} are {credits}, must be 1 to {MAX_CREDITS}")
        self._endpoint = endpoint
        self._worker_id = worker_id
        self._verify = verify
        self._credits = credits

    def run(self) -> int:
        """Consumes Work, waits for it, is unblocked by Stop, produces one ScoreReply each; returns how many it scored.

        Raises:
            ProtocolError: the stream sent what this version does not understand; this worker leaves first.
        """
        channel = WorkerChannel(self._endpoint, self._worker_id, self._credits)
        num_scored = 0
        try:
            channel.announce()
            while True:
                message = channel.receive(ANNOUNCE_INTERVAL_S)
                if message is None:
                    channel.announce()
                elif isinstance(message, Stop):
                    return num_scored
                else:
                    channel.reply(message.request.completion_id, self._score(message.request))
                    num_scored += 1
        except BaseException:
            channel.leave()
            raise
        finally:
            channel.close()

    def _score(self, request: ScoreRequest) -> Verdict:
        try:
            return self._verify(request)
        except Exception as error:
            _logger.exception("the verifier raised on %s", request.completion_id)
            return Unknown(why=f"the verifier raised {type(error).__name__}: {error}")
