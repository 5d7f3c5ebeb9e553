"""Messages of the reward stream, and completions as they travel in them.

worker -> stream   Ready, ScoreReply, Bye
stream -> worker   Work, Stop
engine -> stream   Finished, Hello
stream -> engine   Accepted

A worker is known by its connection, whose name it chooses itself, at random, and keeps when the connection breaks. So
what it says needs no sender, and nobody speaks for another.

The reward stream forwards and stores completions and reads neither text nor numbers: these travel as bytes of their
own, which stay in the frame that they came in. Packed, 10,000 tokens take 140 KB where Python lists take 560 KB, and
they become lists only where somebody needs them. msgpack rather than arrays of fixed width: the engine, which has the
least time, packs twice as fast.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, ScoredCompletion, ScoreRequest, Verdict, without_numbers
from hybridflow.types.tokens import COLUMNS, Packed, Ragged, build_columns

FLOAT_BYTES = 9
"""Bytes of each element of a msgpack array of float64, its type included."""
OVERHEAD_BYTES = 1024
"""Bytes that one completion costs besides text and numbers: Python objects and table entries, rounded up."""

_encoder = msgspec.msgpack.Encoder()
_FLOATS = frozenset(name for name, kind in COLUMNS.items() if kind == list[float])
_RAGGED = frozenset(name for name, kind in COLUMNS.items() if kind is Ragged)
_PACKED = frozenset(name for name, kind in COLUMNS.items() if kind is Packed)
_unpack = {name: msgspec.msgpack.Decoder(kind).decode for name, kind in COLUMNS.items()}
_unpack_view = msgspec.msgpack.Decoder(tuple[tuple[int, int], int, memoryview]).decode
"""A `Packed` without a copy of its bytes."""
_PAIR = b"\x92"
"""How a msgpack array of two begins."""
_EMPTY = memoryview(_encoder.encode([]))


class PackedCompletion(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A completion with text and token columns apart; holds the frame that it came in.

    Raises ValueError where the counts of its columns differ, or one of floats holds anything but float64.
    """

    head: Completion
    """Everything but these: its text and its tokens are empty."""
    text: memoryview
    """UTF-8."""
    columns: dict[str, memoryview]
    """By name, those of `TokenColumns` that are there: msgpack arrays."""

    def __post_init__(self) -> None:
        prompt = self.head.prompt_experts
        if len(prompt) not in (0, self.head.prompt_tokens - 1):
            raise ValueError(
                f"{self.head.completion_id}: experts of {len(prompt)} tokens of a prompt of {self.head.prompt_tokens}"
            )
        ids = self.columns.get("ids", _EMPTY)
        num_tokens, start = _count(ids)
        num_bytes = start + num_tokens * FLOAT_BYTES
        for name, array in self.columns.items():
            if name in _FLOATS:
                # Arrays of as many elements begin with the same bytes.
                if len(array) != num_bytes or array[:start] != ids[:start]:
                    _refuse_floats(self.head.completion_id, name, array, num_tokens)
            elif name in _RAGGED:
                if array[:1] != _PAIR:
                    raise ValueError(f"{self.head.completion_id}: {name} is no pair of lengths and values")
                _check_count(self.head.completion_id, name, array[1:], num_tokens)
            elif name in _PACKED:
                _check_packed(self.head.completion_id, name, array, num_tokens)
            elif name != "ids":
                if name not in COLUMNS:
                    raise ValueError(f"{self.head.completion_id}: {name!r:.40} is no token column")
                _check_count(self.head.completion_id, name, array, num_tokens)

    @property
    def num_tokens(self) -> int:
        return _count(self.columns.get("ids", _EMPTY))[0]

    @property
    def num_bytes(self) -> int:
        """Memory held, about."""
        shared = len(self.head.prompt_experts.data)
        return OVERHEAD_BYTES + sum(map(len, self.columns.values())) + len(self.text) + shared


def _check_count(completion_id: str, name: str, array: memoryview, num_tokens: int) -> None:
    if (num_entries := _count(array)[0]) != num_tokens:
        raise ValueError(f"{completion_id}: {num_tokens} tokens but {num_entries} entries of {name}")


def _check_packed(completion_id: str, name: str, array: memoryview, num_tokens: int) -> None:
    try:
        (rows, columns), bytes_each, data = _unpack_view(array)
    except msgspec.DecodeError as error:
        raise ValueError(f"{completion_id}: {name} is no packed column: {error}") from error
    if len(data) != num_tokens * rows * columns * bytes_each:
        raise ValueError(
            f"{completion_id}: {num_tokens} tokens but {len(data)} bytes of {name}, at {rows} x {columns} integers of "
            f"{bytes_each} bytes each"
        )


def _refuse_floats(completion_id: str, name: str, array: memoryview, num_tokens: int) -> None:
    num_entries, start = _count(array)
    if len(array) != start + num_entries * FLOAT_BYTES:
        raise ValueError(f"{completion_id}: {name} is cut off, or not all are floats")
    _check_count(completion_id, name, array, num_tokens)


class ScoredPacked(ScoredCompletion):
    """A scored completion that stays packed until its text or its numbers are needed; they are made at each use."""

    __slots__ = ("num_bytes", "packed")

    def __init__(self, packed: PackedCompletion, num_bytes: int, verdict: Verdict, scored_by: str) -> None:
        self.packed = packed
        self.num_bytes = num_bytes
        self.head = packed.head
        self.verdict = verdict
        self.scored_by = scored_by

    @property
    def completion(self) -> Completion:
        return unpack_completion(self.packed)

    @property
    def text(self) -> str:
        return _text_of(self.packed)

    @property
    def num_tokens(self) -> int:
        return self.packed.num_tokens


class Packer:
    """Packs one completion after the other in the same memory: fresh memory for each costs as much as packing it."""

    def __init__(self) -> None:
        self._memory = {name: bytearray() for name in COLUMNS}
        self._packed: PackedCompletion | None = None

    def pack(self, completion: Completion) -> PackedCompletion:
        """To be used before the next is packed.

        Raises ProtocolError: columns differ in length, a number does not fit 64 bits, the text no UTF-8.
        """
        self._packed = None
        tokens, columns = completion.tokens, {}
        try:
            for name, memory in self._memory.items():
                if values := getattr(tokens, name):
                    _encoder.encode_into(values, memory)
                    columns[name] = memoryview(memory)
            self._packed = PackedCompletion(
                head=without_numbers(completion), text=memoryview(completion.text.encode()), columns=columns
            )
        except (ValueError, OverflowError) as error:
            raise ProtocolError(f"completion {completion.completion_id} cannot be sent: {error}") from error
        return self._packed


def unpack_completion(packed: PackedCompletion) -> Completion:
    """The very completion that was packed. Raises ProtocolError where its numbers are none, or do not fit."""
    try:
        tokens = build_columns({name: _unpack[name](array) for name, array in packed.columns.items()})
        tokens.check()
    except ValueError as error:
        raise ProtocolError(f"completion {packed.head.completion_id} has malformed numbers: {error}") from error
    return msgspec.structs.replace(packed.head, text=_text_of(packed), tokens=tokens)


def _text_of(packed: PackedCompletion) -> str:
    try:
        return str(packed.text, "utf-8")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"completion {packed.head.completion_id} has a malformed text: {error}") from error


def _count(array: memoryview) -> tuple[int, int]:
    """(elements of a msgpack array, where they begin), from its head; ValueError where it is none."""
    kind = array[0] if array else 0
    if kind & 0xF0 == 0x90:
        return kind & 0x0F, 1
    num_bytes = 2 if kind == 0xDC else 4 if kind == 0xDD else 0
    if not num_bytes or len(array) <= num_bytes:
        raise ValueError("numbers are no msgpack array")
    return int.from_bytes(array[1 : 1 + num_bytes], "big"), 1 + num_bytes


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
