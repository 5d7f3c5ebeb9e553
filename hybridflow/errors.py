"""Every error that a user may see, as one tree.

    HybridFlowError
    |-- ConfigError          a key, a value or a combination of values is wrong; found before anything starts
    |-- DataError            a data file is missing, malformed or does not fit the run
    |-- PlacementError       the machine or cluster cannot hold the actors that the layout asks for
    |-- WorkerError          an actor process died or broke; names it
    |   |-- RolloutError     a rollout engine
    |   |-- RewardError      a reward worker, or the reward stream
    |   `-- TrainerError     a train worker
    |-- StalledError         nothing moved for longer than a phase may take; names what stood still
    |-- WeightSyncError      weights did not arrive as they were sent, or at the version that was sent
    |-- ModelMismatchError   trainer and engines compute different log-probabilities of the same tokens
    |-- DiskFullError        the disk of the run folder is full
    |-- CheckpointError      a checkpoint cannot be written, found or read
    `-- ProtocolError        two parts of the system disagree about what was said

A message says what happened, where (key path, file, row, step, rank, id), the offending value and the remedy.
The command line prints the message alone; `--traceback` shows the rest.
"""


class HybridFlowError(Exception):
    """Base of all errors raised on purpose; its message is written for a user."""


class ConfigError(HybridFlowError):
    """A configuration key or value is wrong."""


class DataError(HybridFlowError):
    """Input data is missing, malformed or does not fit the run."""


class PlacementError(HybridFlowError):
    """The requested actors do not fit on the available resources."""


class WorkerError(HybridFlowError):
    """A worker process died or reported a failure."""


class RolloutError(WorkerError):
    """A rollout engine failed."""


class RewardError(WorkerError):
    """A reward worker or the reward stream failed."""


class TrainerError(WorkerError):
    """A train worker failed."""


class StalledError(HybridFlowError):
    """Nothing in the run moved for longer than `cluster.stall` allows."""


class WeightSyncError(HybridFlowError):
    """Published weights were not confirmed by an engine."""


class ModelMismatchError(HybridFlowError):
    """Trainer and engines compute different models."""


class DiskFullError(HybridFlowError):
    """A file of the run cannot be written: no space, quota or size is left."""


class CheckpointError(HybridFlowError):
    """A checkpoint cannot be written, found or read."""


class ProtocolError(HybridFlowError):
    """A message or a state contradicts the protocol between two parts."""


def notes_of(error: BaseException) -> list[str]:
    """Notes added to the error on its way up, such as the command that goes on from here."""
    return list(getattr(error, "__notes__", []))


def tell_interrupted(interrupt: KeyboardInterrupt, remedy: str) -> str:
    """The text that the user reads after Ctrl-C: the notes of the interrupt, or `remedy` where it has none."""
    told = "\n".join(notes_of(interrupt)) or remedy
    return f"interrupted; {told[:1].lower()}{told[1:]}"
