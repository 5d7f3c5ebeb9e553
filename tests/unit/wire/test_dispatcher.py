"""The machine alone: no sockets, no threads."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.errors import ProtocolError
from hybridflow.types import GroupRequest, Scored, Unknown
from hybridflow.wire.dispatcher import MAX_ATTEMPTS, ScoreDispatcher
from hybridflow.wire.messages import PackedCompletion, Packer, Ready, ScoredPacked
from tests.builders import build_completion, build_prompt, build_request

YES = Scored(value=1.0, rule="r", extracted="e", why="y")


def group(slot: int, num_completions: int = 1) -> GroupRequest:
    prompt = build_prompt(f"p{slot}", ground_truth=f"g{slot}")
    return build_request(prompt, num_completions, group_id=f"t0-g{slot}")


def completion(slot: int, index: int = 0, prompt_id: str | None = None) -> PackedCompletion:
    prompt_id = prompt_id or f"p{slot}"
    return Packer().pack(build_completion(group(slot), index, prompt_id=prompt_id, text=f"text {slot} {index}"))


class Machine(ScoreDispatcher):
    """The machine with a clock that the test moves; every worker can be reached."""

    now = 0.0

    def here(
        self, worker_id: str, credits: int, holding: list[str] | None = None, process: str = ""
    ) -> list[ScoredPacked]:
        return self.ready((process or worker_id).encode(), Ready(worker_id, credits, holding or []), self.now)

    def give(self) -> list[tuple[str, str]]:
        return [(worker, work.completion_id) for worker, work in self.assign(self.workers, self.now)]

    def answer(self, worker_id: str, completion_id: str, verdict: Scored | Unknown = YES) -> ScoredPacked | None:
        return self.replied(worker_id, completion_id, verdict, self.now)


def test_the_request_joins_what_the_driver_and_the_engine_know() -> None:
    state = Machine()
    state.expect([group(3, 2)])
    state.finished(completion(3, 1))
    state.here("w", 1)
    ((worker_id, work),) = state.assign(state.workers, state.now)
    request = work.request
    assert (worker_id, request.completion_id, request.ground_truth, request.text) == (
        "w",
        "t0-g3-c01",
        "g3",
        "text 3 1",
    )
    assert state.outstanding() == {"t0-g3-c00", "t0-g3-c01"}
    scored = state.answer("w", "t0-g3-c01", YES)
    assert scored is not None and (scored.verdict, scored.scored_by) == (YES, "w")
    assert state.outstanding() == {"t0-g3-c00"}


def test_no_worker_holds_more_than_its_credits_and_the_freest_comes_first() -> None:
    state = Machine()
    state.expect([group(slot) for slot in range(6)])
    for slot in range(6):
        state.finished(completion(slot))
    state.here("b", 1)
    state.here("a", 3)
    assert [worker for worker, _ in state.assign(state.workers, state.now)] == ["a", "a", "a", "b"]
    assert state.assign(state.workers, state.now) == []
    state.here("b", 1)  # repeated while it holds an item: no new credit
    assert state.assign(state.workers, state.now) == []
    state.answer("b", "t0-g3-c00", YES)
    assert [(worker, request.completion_id) for worker, request in state.assign(state.workers, state.now)] == [
        ("b", "t0-g4-c00")
    ]


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    state = Machine()
    state.expect([group(0), group(1), group(2)])
    state.here("w", 8)
    state.finished(completion(9))
    state.finished(completion(2, prompt_id="p1"))
    state.finished(completion(0))
    state.finished(completion(0))
    assert len(state.assign(state.workers, state.now)) == 1
    assert state.answer("w", "t0-g0-c00", YES) is not None
    assert state.answer("w", "t0-g0-c00", YES) is None
    state.finished(completion(0))
    assert state.answer("w", "t0-g7-c00", YES) is None
    assert state.outstanding() == {"t0-g1-c00", "t0-g2-c00"}
    assert state.counters == {
        "unexpected_completion": 1,
        "mislabelled_completion": 1,
        "duplicate_completion": 2,
        "duplicate_verdict": 1,
        "unexpected_verdict": 1,
    }


def test_ids_are_expected_once_and_all_or_none() -> None:
    state = Machine()
    state.expect([group(0)])
    with pytest.raises(ProtocolError, match="t0-g0-c00 is expected twice"):
        state.expect([group(1), group(0)])
    assert state.outstanding() == {"t0-g0-c00"}


def test_items_of_a_lost_worker_go_first_and_in_order() -> None:
    state = Machine()
    state.expect([group(slot) for slot in range(3)])
    state.here("dies", 2)
    for slot in range(3):
        state.finished(completion(slot))
    assert [request.completion_id for _, request in state.assign(state.workers, state.now)] == [
        "t0-g0-c00",
        "t0-g1-c00",
    ]
    assert state.answer("dies", "t0-g1-c00", YES) is not None
    assert state.lost("dies", "killed") == []
    state.here("other", 8)
    assert state.give() == [("other", "t0-g0-c00"), ("other", "t0-g2-c00")]
    assert state.answer("other", "t0-g1-c00", YES) is None
    assert state.counters == {"worker_lost": 1, "requeued": 1, "duplicate_verdict": 1}


def test_an_item_that_kills_every_worker_ends_as_unknown() -> None:
    state = Machine()
    state.expect([group(0)])
    state.finished(completion(0))
    given_up = []
    for attempt in range(MAX_ATTEMPTS):
        state.here(f"w{attempt}", 1)
        assert len(state.assign(state.workers, state.now)) == 1
        given_up = state.lost(f"w{attempt}", "segmentation fault")
    assert [item.verdict for item in given_up] == [
        Unknown(why=f"{MAX_ATTEMPTS} reward workers were lost holding it, last w2: segmentation fault")
    ]
    assert state.outstanding() == set()


def test_what_a_silent_worker_holds_goes_to_another_whose_verdict_alone_counts() -> None:
    state = Machine(lease_s=10.0)
    state.expect([group(0), group(1)])
    state.finished(completion(0))
    state.finished(completion(1))
    state.here("stopped", 2)
    assert len(state.give()) == 2
    state.now = 9.0
    state.here("other", 2)
    state.lapse(state.now)
    assert state.give() == []
    state.now = 10.0
    state.lapse(state.now)
    assert state.workers == ["other"]
    assert state.give() == [("other", "t0-g0-c00"), ("other", "t0-g1-c00")]
    state.here("stopped", 2)  # it goes on, and is the first to answer
    assert state.answer("stopped", "t0-g0-c00") is None
    first = state.answer("other", "t0-g0-c00")
    assert first is not None and first.scored_by == "other"
    assert state.counters == {"worker_silent": 1, "requeued": 2, "verdict_without_lease": 1}


def test_an_item_that_a_worker_does_not_name_goes_back_to_the_queue() -> None:
    state = Machine(lease_s=10.0)
    state.expect([group(0), group(1)])
    state.finished(completion(0))
    state.finished(completion(1))
    state.here("w", 2)
    state.give()
    state.now = 9.0
    state.here("w", 2, holding=["t0-g1-c00"])  # the first was lost on the way
    state.now = 10.0
    state.lapse(state.now)
    assert state.give() == [("w", "t0-g0-c00")]
    assert state.counters == {"lease_lapsed": 1, "requeued": 1}


def test_silence_is_never_held_against_an_item() -> None:
    state = Machine(lease_s=1.0)
    state.expect([group(0)])
    state.finished(completion(0))
    for turn in range(3 * MAX_ATTEMPTS):
        state.now = 2.0 * turn
        state.here(f"w{turn}", 1)
        assert state.give() == [(f"w{turn}", "t0-g0-c00")]
        state.now += 1.0
        state.lapse(state.now)
    assert state.outstanding() == {"t0-g0-c00"}


def test_another_process_under_the_same_id_gets_the_items_anew() -> None:
    state = Machine()
    state.expect([group(0)])
    state.finished(completion(0))
    state.here("w", 1, process="first")
    state.give()
    state.here("w", 1, process="first")
    assert state.give() == []
    state.here("w", 1, process="second")
    assert state.give() == [("w", "t0-g0-c00")]
    assert state.counters == {"worker_lost": 1, "requeued": 1}


def test_an_unknown_is_tried_again_then_counts_and_only_from_the_holder() -> None:
    state = Machine(num_unknown_retries=1)
    state.expect([group(0)])
    state.finished(completion(0))
    state.here("w", 1)
    state.give()
    state.here("stranger", 1)
    assert state.answer("stranger", "t0-g0-c00", Unknown(why="a")) is None
    state.left("stranger")
    assert state.answer("w", "t0-g0-c00", Unknown(why="b")) is None
    assert state.give() == [("w", "t0-g0-c00")]
    final = state.answer("w", "t0-g0-c00", Unknown(why="c"))
    assert final is not None and final.verdict == Unknown(why="c")
    assert state.counters == {"verdict_without_lease": 1, "unknown_retried": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9, -5.0, 1.0000001])
def test_a_verdict_that_is_no_reward_is_counted_and_dropped(value: float) -> None:
    state = Machine(lease_s=10.0)
    state.expect([group(0)])
    state.finished(completion(0))
    state.here("w", 1)
    state.give()
    for verdict in (
        msgspec.structs.replace(YES, value=value),
        msgspec.structs.replace(YES, rule_value=value),
    ):
        assert state.answer("w", "t0-g0-c00", verdict) is None
    assert state.counters == {"verdict_out_of_range": 2}
    assert state.answer("w", "t0-g0-c00", YES) is not None, "it still has the lease"


def test_twenty_thousand_invented_workers_take_no_memory() -> None:
    state = Machine(max_workers=3)
    for number in range(20_000):
        state.here(f"invented-{number}", 1)
    for number in range(20_000):
        state.here(f"other-{number}", 1, process="invented-0")  # one connection, many names
    assert state.workers == ["invented-0", "invented-1", "invented-2"]
    assert state.counters == {"worker_refused": 39_997}


def test_pending_bytes_are_those_of_completions_without_a_verdict() -> None:
    state = Machine()
    state.expect([group(0), group(1), group(2)])
    for slot in range(3):
        state.finished(completion(slot))
    state.here("w", 3)
    state.give()
    state.answer("w", "t0-g0-c00")
    state.answer("w", "t0-g1-c00")
    assert state.pending_bytes == completion(2).num_bytes
    assert state.num_pending == 1


def test_a_worker_that_cannot_be_reached_gets_nothing() -> None:
    state = Machine()
    state.expect([group(0)])
    state.finished(completion(0))
    state.here("a", 1)
    state.here("b", 1)
    assert [worker for worker, _ in state.assign(["b"], state.now)] == ["b"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_under_any_order_of_events_each_expected_id_is_scored_exactly_once(data: st.DataObject) -> None:
    state, num_groups, at_worker, scored = Machine(2.0, 1), 5, {"a": [], "b": []}, []
    state.expect([group(slot) for slot in range(num_groups)])

    def take(item: object) -> None:
        if item is not None:
            scored.append(item)

    events = st.tuples(
        st.sampled_from(["finish", "ready", "reply", "unknown", "lost", "leave", "time"]), st.integers(0, 7)
    )
    for event, number in data.draw(st.lists(events, max_size=40)):
        worker = "ab"[number % 2]
        if event == "finish":
            state.finished(completion(number % num_groups))
        elif event == "ready":
            state.here(worker, 2)
        elif event == "reply" and at_worker[worker] and worker in state.workers:
            take(state.answer(worker, at_worker[worker].pop(0), YES))
        elif event == "unknown" and at_worker[worker] and worker in state.workers:
            take(state.answer(worker, at_worker[worker].pop(0), Unknown(why="x")))
        elif event == "lost":
            scored.extend(state.lost(worker, "x"))
        elif event == "leave":
            state.left(worker)
        elif event == "time":
            state.now += 1.0
            state.lapse(state.now)
        for name, request in state.assign(state.workers, state.now):
            at_worker[name].append(request.completion_id)
    for slot in range(num_groups):
        state.finished(completion(slot))
    for worker in "ab":
        scored.extend(state.lost(worker, "x"))
    state.here("c", 64)
    for _, request in state.assign(state.workers, state.now):
        take(state.answer("c", request.completion_id, YES))
    ids = sorted(item.head.completion_id for item in scored)
    assert ids == [f"t0-g{slot}-c00" for slot in range(num_groups)]
    assert state.outstanding() == set()


def test_an_aborted_completion_is_handed_on_unscored_and_may_be_expected_again() -> None:
    state = Machine()
    state.expect([group(0)])
    packed = completion(0)
    aborted = msgspec.structs.replace(packed, head=msgspec.structs.replace(packed.head, finish_reason="abort"))
    result = state.finished(aborted)
    assert result is not None and isinstance(result.verdict, Unknown) and result.packed is aborted
    assert state.outstanding() == set() and state.pending_bytes == 0
    state.expect([group(0)])
    state.here("w", 1)
    assert state.finished(completion(0)) is None
    assert state.give() == [("w", "t0-g0-c00")]


def test_what_is_withdrawn_may_be_expected_again() -> None:
    state = Machine()
    state.expect([group(0, 2)])
    state.finished(completion(0, 0))
    state.withdraw(["t0-g0-c01"])
    assert state.outstanding() == {"t0-g0-c00"}
    with pytest.raises(ProtocolError, match="t0-g0-c00 is withdrawn but not awaited"):
        state.withdraw(["t0-g0-c00"])
    state.expect([msgspec.structs.replace(group(0, 2), done=[0])])
    assert state.outstanding() == {"t0-g0-c00", "t0-g0-c01"}


def test_what_is_given_up_is_unknown_and_a_verdict_that_still_comes_is_late() -> None:
    state = Machine()
    state.expect([group(0, 2)])
    state.finished(completion(0))
    state.here("w", 1)
    assert state.give() == [("w", "t0-g0-c00")]
    (given_up,) = state.give_up("no verdict within 5 s")
    assert (given_up.head.completion_id, given_up.verdict) == ("t0-g0-c00", Unknown(why="no verdict within 5 s"))
    assert (state.num_pending, state.outstanding()) == (0, {"t0-g0-c01"})
    assert state.answer("w", "t0-g0-c00") is None
