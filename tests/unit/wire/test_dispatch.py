"""The machine alone: no sockets, no threads."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.errors import ProtocolError
from hybridflow.types import Completion, GroupRequest, Prompt, Scored, Unknown
from hybridflow.wire.dispatch import MAX_ATTEMPTS, ScoreDispatch

YES = Scored(value=1.0, rule="r", extracted="e", why="y")


def group(slot: int, num_completions: int = 1) -> GroupRequest:
    prompt = Prompt(prompt_id=f"p{slot}", token_ids=[1], data_source="s", ability="doc-qa", ground_truth=f"g{slot}")
    return GroupRequest(group_id=f"t0-g{slot}", prompt=prompt, num_completions=num_completions)


def completion(slot: int, index: int = 0, prompt_id: str | None = None) -> Completion:
    return Completion(
        completion_id=f"t0-g{slot}-c{index:02d}",
        group_id=f"t0-g{slot}",
        prompt_id=prompt_id or f"p{slot}",
        index=index,
        token_ids=[2],
        rollout_logprobs=[-1.0],
        text=f"text {slot} {index}",
        finish_reason="stop",
        policy_version=0,
        prompt_tokens=1,
        cached_tokens=0,
    )


def test_the_request_joins_what_the_driver_and_the_engine_know() -> None:
    state = ScoreDispatch()
    state.expect([group(3, 2)])
    state.finished(completion(3, 1))
    state.ready("w", 1)
    ((worker_id, request),) = state.assign()
    assert (worker_id, request.completion_id, request.ground_truth, request.text) == (
        "w",
        "t0-g3-c01",
        "g3",
        "text 3 1",
    )
    assert state.outstanding() == {"t0-g3-c00", "t0-g3-c01"}
    scored = state.replied("w", "t0-g3-c01", YES)
    assert scored is not None and (scored.verdict, scored.scored_by) == (YES, "w")
    assert state.outstanding() == {"t0-g3-c00"}


def test_no_worker_holds_more_than_its_credits_and_the_freest_comes_first() -> None:
    state = ScoreDispatch()
    state.expect([group(slot) for slot in range(6)])
    for slot in range(6):
        state.finished(completion(slot))
    state.ready("b", 1)
    state.ready("a", 3)
    assert [worker for worker, _ in state.assign()] == ["a", "a", "a", "b"]
    assert state.assign() == []
    state.ready("b", 1)  # repeated while it holds an item: no new credit
    assert state.assign() == []
    state.replied("b", "t0-g3-c00", YES)
    assert [(worker, request.completion_id) for worker, request in state.assign()] == [("b", "t0-g4-c00")]


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    state = ScoreDispatch()
    state.expect([group(0), group(1), group(2)])
    state.ready("w", 8)
    state.finished(completion(9))
    state.finished(completion(2, prompt_id="p1"))
    state.finished(completion(0))
    state.finished(completion(0))
    assert len(state.assign()) == 1
    assert state.replied("w", "t0-g0-c00", YES) is not None
    assert state.replied("w", "t0-g0-c00", YES) is None
    state.finished(completion(0))
    state.finished(completion(1))
    state.assign()
    state.forget(["t0-g1-c00", "t0-g0-c00", "never heard of"])
    assert state.replied("w", "t0-g1-c00", YES) is None
    state.finished(completion(1))
    assert state.replied("w", "t0-g7-c00", YES) is None
    assert state.outstanding() == {"t0-g2-c00"}
    assert state.counters == {
        "unexpected_completion": 1,
        "mislabelled_completion": 1,
        "duplicate_completion": 2,
        "duplicate_verdict": 1,
        "late_verdict": 1,
        "late_completion": 1,
        "unexpected_verdict": 1,
    }


def test_ids_are_expected_once_and_all_or_none() -> None:
    state = ScoreDispatch()
    state.expect([group(0)])
    with pytest.raises(ProtocolError, match="t0-g0-c00 is expected twice"):
        state.expect([group(1), group(0)])
    assert state.outstanding() == {"t0-g0-c00"}


def test_items_of_a_lost_worker_go_first_and_in_order_and_a_late_verdict_counts_once() -> None:
    state = ScoreDispatch()
    state.expect([group(slot) for slot in range(3)])
    state.ready("dies", 2)
    for slot in range(3):
        state.finished(completion(slot))
    assert [request.completion_id for _, request in state.assign()] == ["t0-g0-c00", "t0-g1-c00"]
    assert state.lost("dies", "killed") == []
    assert state.replied("dies", "t0-g1-c00", YES) is not None  # it had answered before it died
    state.ready("other", 8)
    assert [request.completion_id for _, request in state.assign()] == ["t0-g0-c00", "t0-g2-c00"]
    assert state.replied("other", "t0-g1-c00", YES) is None


def test_an_item_that_kills_every_worker_ends_as_unknown() -> None:
    state = ScoreDispatch()
    state.expect([group(0)])
    state.finished(completion(0))
    given_up = []
    for attempt in range(MAX_ATTEMPTS):
        state.ready(f"w{attempt}", 1)
        assert len(state.assign()) == 1
        given_up = state.lost(f"w{attempt}", "segmentation fault")
    assert [item.verdict for item in given_up] == [
        Unknown(why=f"{MAX_ATTEMPTS} reward workers were lost holding it, last w2: segmentation fault")
    ]
    assert state.outstanding() == set()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_under_any_order_of_events_each_expected_id_is_scored_exactly_once(data: st.DataObject) -> None:
    state, num_groups, at_worker, scored = ScoreDispatch(), 5, {"a": [], "b": []}, []
    state.expect([group(slot) for slot in range(num_groups)])

    def take(item: object) -> None:
        if item is not None:
            scored.append(item)

    events = st.tuples(st.sampled_from(["finish", "ready", "reply", "lost"]), st.integers(0, 7))
    for event, number in data.draw(st.lists(events, max_size=40)):
        worker = "ab"[number % 2]
        if event == "finish":
            state.finished(completion(number % num_groups))
        elif event == "ready":
            state.ready(worker, 2)
        elif event == "reply" and at_worker[worker]:
            take(state.replied(worker, at_worker[worker].pop(0), YES))
        elif event == "lost":
            scored.extend(state.lost(worker, "x"))
        for name, request in state.assign():
            at_worker[name].append(request.completion_id)
    for slot in range(num_groups):
        state.finished(completion(slot))
    for worker in "ab":
        scored.extend(state.lost(worker, "x"))
    state.ready("c", 64)
    for _, request in state.assign():
        take(state.replied("c", request.completion_id, YES))
    ids = sorted(item.completion.completion_id for item in scored)
    assert ids == [f"t0-g{slot}-c00" for slot in range(num_groups)]
    assert state.outstanding() == set()
