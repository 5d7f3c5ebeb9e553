"""Frames survive the round trip, and nothing else gets through."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.errors import ProtocolError
from hybridflow.types import Packed, Ragged, Scored, ScoreRequest, TokenColumns, Unknown, VersionRun
from hybridflow.wire import codec
from hybridflow.wire.messages import (
    Accepted,
    Bye,
    Finished,
    Hello,
    Packer,
    Ready,
    ScoreReply,
    Stop,
    Task,
    Work,
    build_completion_id,
    unpack_completion,
)
from tests.builders import build_completion, build_prompt, build_request

COMPLETION = build_completion(
    build_request(build_prompt("docqa-000000"), group_id="t00000-g0000"),
    version=7,
    tokens=TokenColumns(ids=[3, 4], rollout_logprobs=[-0.5, -0.25]),
    text="the answer is \u5186",
    prompt_tokens=5,
    cached_tokens=1,
)
REQUEST = ScoreRequest(completion_id="c", data_source="s", ability="doc-qa", ground_truth="g", text="t")
TASK = memoryview(msgspec.msgpack.encode(Task("s", "doc-qa", "g", "")))
WORK = Work("c", TASK, memoryview(b"t"))
PACKED = Packer().pack(COMPLETION)
DECODERS = [codec.decode_from_worker, codec.decode_from_engine, codec.decode_to_worker, codec.decode_to_engine]


@pytest.mark.parametrize(
    "message",
    [
        Ready("w", 4),
        Ready("w", 4, ["c1", "c2"]),
        ScoreReply("c", Scored(value=0.5, rule="r", extracted="e", why="y")),
        ScoreReply(
            "c",
            Scored(
                value=1.0,
                rule="r",
                extracted="e",
                why="y",
                predicted_form="p",
                gold_form="g",
                judge="j",
                judge_vote="yes",
            ),
        ),
        ScoreReply("c", Unknown(why="y")),
        Bye(),
    ],
)
def test_worker_messages_survive(message: Ready | ScoreReply | Bye) -> None:
    assert codec.decode_from_worker(codec.encode(message)) == [message]


def test_other_messages_survive() -> None:
    for message in (Finished("e", 1, PACKED), Hello("e", 3)):
        assert codec.decode_from_engine(codec.encode(message)) == [message]
    assert codec.decode_to_engine(codec.encode(Accepted([1, 2], 0, 3))) == [Accepted([1, 2], 0, 3)]
    assert codec.decode_to_worker(codec.encode(WORK)) == [WORK]
    assert WORK.request == REQUEST
    assert codec.decode_to_worker(codec.encode(Stop())) == [Stop()]


def test_messages_of_one_frame_keep_their_order() -> None:
    messages = [Ready(f"w{n}", 1) for n in range(300)]
    batch = codec.Batch()
    for message in messages:
        batch.add(message)
    (frame,) = batch.take_frames()
    assert codec.decode_from_worker(frame) == messages
    assert batch.take_frames() == []


def test_joined_frames_keep_the_order_and_their_bound_and_a_large_message_goes_alone() -> None:
    sizes = [codec.MAX_BATCH_BYTES // 3, codec.MAX_BATCH_BYTES // 2, 1, codec.MAX_BATCH_BYTES + 1, 2, 3]
    works = [msgspec.structs.replace(WORK, text=memoryview(b"x" * size)) for size in sizes]
    batch = codec.Batch()
    for work in works:
        batch.add(work)
    frames = batch.take_frames()
    decoded = [codec.decode_to_worker(frame) for frame in frames]
    assert [message for messages in decoded for message in messages] == works
    assert [len(messages) for messages in decoded] == [3, 1, 2]
    assert [len(frame) <= codec.MAX_BATCH_BYTES for frame in frames] == [True, False, True]


def test_another_schema_version_is_refused_with_the_remedy() -> None:
    frame = bytes([codec.SCHEMA_VERSION + 1]) + codec.encode(Bye())[1:]
    with pytest.raises(ProtocolError, match="same hybridflow version"):
        codec.decode_from_worker(frame)


def test_a_message_of_another_direction_is_refused() -> None:
    with pytest.raises(ProtocolError):
        codec.decode_from_worker(codec.encode(Stop()))


@pytest.mark.parametrize("cut", [0, 1, 2, 10, -1])
def test_a_cut_frame_is_refused(cut: int) -> None:
    with pytest.raises(ProtocolError):
        codec.decode_from_engine(codec.encode(Finished("e", 1, PACKED))[:cut])


@pytest.mark.parametrize("credits", [0, -1, 65])
def test_credits_out_of_bounds_are_refused_on_arrival(credits: int) -> None:
    frame = bytes([codec.SCHEMA_VERSION]) + msgspec.msgpack.encode([[1, "w", credits]])
    with pytest.raises(ProtocolError, match="credits"):
        codec.decode_from_worker(frame)


@pytest.mark.parametrize(
    ("field", "data", "message"),
    [
        ("rollout_logprobs", msgspec.msgpack.encode([-0.5]), "2 tokens but 1 entries of rollout_logprobs"),
        ("rollout_logprobs", msgspec.msgpack.encode([-0.5, -0.25])[:-1], "cut off"),
        ("rollout_logprobs", msgspec.msgpack.encode([-0.5, 3]), "not all are floats"),
        ("ids", b"9 bytes..", "no msgpack array"),
        ("ids", b"", "no msgpack array"),
        ("ids", msgspec.msgpack.encode([3] * 20)[:2], "no msgpack array"),
        ("sampling_mask", msgspec.msgpack.encode([[4], []]), "2 tokens but 1 entries of sampling_mask"),
        ("sampling_mask", msgspec.msgpack.encode([4]), "sampling_mask is no pair"),
        ("experts", msgspec.msgpack.encode([[1, 3], 1, b"abc"]), "2 tokens but 3 bytes of experts, at 1 x 3 integers"),
        ("experts", msgspec.msgpack.encode([4, 5]), "experts is no packed column"),
        ("mood", msgspec.msgpack.encode([4, 5]), "'mood' is no token column"),
    ],
)
def test_numbers_that_do_not_fit_each_other_are_refused(field: str, data: bytes, message: str) -> None:
    torn = {"head": PACKED.head, "text": PACKED.text, "columns": PACKED.columns | {field: memoryview(data)}}
    frame = bytes([codec.SCHEMA_VERSION]) + msgspec.msgpack.encode([[1, "e", 1, list(torn.values())]])
    with pytest.raises(ProtocolError, match=message):
        codec.decode_from_engine(frame)


def test_packed_numbers_come_back_as_they_were() -> None:
    numbers = [-0.1, 0.0, -1e-300, -745.13321910194122, float("-inf")]
    completion = msgspec.structs.replace(
        COMPLETION,
        tokens=TokenColumns(
            ids=[0, 1, 255, 151_935, 2**31 - 1],
            rollout_logprobs=numbers,
            sampling_mask=Ragged([1, 2, 1, 1, 1], [0, 1, 7, 255, 151_935, 2**31 - 1]),
            experts=Packed((2, 1), 2, bytes(range(20))),
        ),
        prompt_experts=Packed((2, 1), 2, bytes(16)),
        versions=[VersionRun(3, 2), VersionRun(4, 3)],
    )
    assert unpack_completion(Packer().pack(completion)) == completion
    assert PACKED.columns["ids"] == b"\x92\x03\x04", "a msgpack array"


def test_experts_of_another_prompt_are_refused() -> None:
    """The prompt has five tokens, and what the last one met is told with the first token of the completion."""
    with pytest.raises(ProtocolError, match="experts of 3 tokens of a prompt of 5"):
        Packer().pack(msgspec.structs.replace(COMPLETION, prompt_experts=Packed((1, 2), 1, bytes(6))))


def test_experts_count_in_the_bytes_that_wait() -> None:
    told = msgspec.structs.replace(COMPLETION, prompt_experts=Packed((1, 2), 1, bytes(8)))
    assert Packer().pack(told).num_bytes == Packer().pack(COMPLETION).num_bytes + 8


@pytest.mark.parametrize("num_tokens", [0, 15, 16, 65_535, 65_536])
def test_tokens_are_counted_without_unpacking(num_tokens: int) -> None:
    packed = Packer().pack(
        msgspec.structs.replace(
            COMPLETION, tokens=TokenColumns(ids=[7] * num_tokens, rollout_logprobs=[-1.0] * num_tokens)
        )
    )
    assert packed.num_tokens == num_tokens == len(unpack_completion(packed).token_ids)


def test_numbers_that_are_none_are_named_when_they_are_unpacked() -> None:
    texts = msgspec.structs.replace(
        PACKED, columns=PACKED.columns | {"ids": memoryview(msgspec.msgpack.encode(["a", "b"]))}
    )
    with pytest.raises(ProtocolError, match="t00000-g0000-c00 has malformed numbers"):
        unpack_completion(texts)


@pytest.mark.parametrize("ids", [[3], [3, 2**64]])
def test_a_completion_that_contradicts_itself_is_not_packed(ids: list[int]) -> None:
    with pytest.raises(ProtocolError, match="t00000-g0000-c00 cannot be sent"):
        Packer().pack(msgspec.structs.replace(COMPLETION, tokens=msgspec.structs.replace(COMPLETION.tokens, ids=ids)))


def test_a_frame_above_the_limit_is_refused_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = codec.encode(Finished("e", 1, PACKED))
    monkeypatch.setattr(codec, "MAX_FRAME_BYTES", len(frame) - 1)
    with pytest.raises(ProtocolError, match="above the limit"):
        codec.encode(Finished("e", 1, PACKED))
    with pytest.raises(ProtocolError, match="must be 1 to"):
        codec.decode_from_engine(frame)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_raise_only_protocol_errors(noise: bytes) -> None:
    for decode in DECODERS:
        for frame in (noise, bytes([codec.SCHEMA_VERSION]) + noise):
            with pytest.raises(ProtocolError):
                decode(frame)


def test_the_id_of_a_completion() -> None:
    assert build_completion_id("t00003-g0005", 2) == "t00003-g0005-c02"
