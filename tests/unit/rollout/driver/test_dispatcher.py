"""Leases of groups under any order of events: each completion once, whatever engines do."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridflow.errors import ProtocolError, RolloutError
from hybridflow.rollout.driver.budget import TokenBudget
from hybridflow.rollout.driver.dispatcher import MAX_ABORTS, MAX_ATTEMPTS, Dispatcher
from hybridflow.types import FinishReason, GroupRequest, Lease, Partial, TokenColumns, VersionRun
from hybridflow.wire.messages import Finished, PackedCompletion, Packer
from tests.builders import build_completion, build_prompt, build_request


def request(name: str, prompt_tokens: int = 10, num: int = 2) -> GroupRequest:
    return build_request(build_prompt(name, token_ids=[1] * prompt_tokens), num, group_id=name)


def completion(
    lease: Lease, index: int, *, tokens: int = 3, retractions: int = 0, finish_reason: FinishReason = "stop"
) -> PackedCompletion:
    decoded = build_completion(
        lease.request,
        index,
        tokens=TokenColumns(ids=[7] * tokens, rollout_logprobs=[-1.0] * tokens),
        finish_reason=finish_reason,
        num_retractions=retractions,
    )
    return Packer().pack(decoded)


def admit(dispatch: Dispatcher, attempt: int, packed: PackedCompletion) -> bool:
    return dispatch.admit(Finished("engine-0", 0, packed, attempt))


def dropped(dispatch: Dispatcher) -> list[str]:
    """Ids that a stop gives up."""
    dispatch.drop_queued()
    return dispatch.take_dropped()


def dispatch_with(*requests: GroupRequest, engines: dict[str, int], max_new_tokens: int = 5) -> Dispatcher:
    dispatch = Dispatcher()
    for name, capacity in engines.items():
        dispatch.engine_up(name, capacity)
    dispatch.add(requests, max_new_tokens)
    return dispatch


def ids(leases: list[Lease]) -> list[str]:
    return [lease.request.group_id for lease in leases]


def test_longest_first_to_the_engine_that_holds_least() -> None:
    """Costs 10 + 2 x 5 = 20, 30, 40, 50: 50 to e0, 40 to e1, 30 to e1 (holds 40 against 50), 20 to e0 (50, 70)."""
    groups = [request("a", 10), request("b", 20), request("c", 30), request("d", 40)]
    leases = dispatch_with(*groups, engines={"e0": 100, "e1": 100}).assign()
    assert {name: ids(given) for name, given in leases.items()} == {"e0": ["d", "a"], "e1": ["c", "b"]}


def test_a_larger_pool_does_not_draw_all_work() -> None:
    leases = dispatch_with(request("a"), request("b"), engines={"e0": 10_000, "e1": 100}).assign()
    assert {name: ids(given) for name, given in leases.items()} == {"e0": ["a"], "e1": ["b"]}


def test_a_group_goes_whole_to_one_engine() -> None:
    leases = dispatch_with(request("a", num=8), engines={"e0": 1000, "e1": 1000}).assign()
    assert [lease.indices for given in leases.values() for lease in given] == [list(range(8))]


def test_what_does_not_fit_waits_until_tokens_are_free() -> None:
    dispatch = dispatch_with(request("a"), request("b"), engines={"e0": 30})
    (lease,) = dispatch.assign()["e0"]
    assert dispatch.assign() == {}
    assert admit(dispatch, 1, completion(lease, 0, tokens=5))
    assert dispatch.assign() == {}  # 15 held, 20 asked
    assert admit(dispatch, 1, completion(lease, 1, tokens=5))
    assert ids(dispatch.assign()["e0"]) == ["b"]


def test_an_idle_engine_takes_a_group_above_its_budget() -> None:
    assert ids(dispatch_with(request("a", 900), engines={"e0": 100}).assign()["e0"]) == ["a"]


def test_expected_length_is_learnt_from_what_ended() -> None:
    """1,000 tokens expected at first, then 3: the second group fits as soon as one completion has ended."""
    dispatch = dispatch_with(request("a"), request("b"), engines={"e0": 2500}, max_new_tokens=1000)
    (lease,) = dispatch.assign()["e0"]
    assert dispatch.tokens_in_flight("e0") == 10 + 2 * 1000
    admit(dispatch, 1, completion(lease, 0, tokens=3))
    assert dispatch.tokens_in_flight("e0") == 10 + 3
    assert ids(dispatch.assign()["e0"]) == ["b"]


def test_further_groups_of_a_step_are_leased_as_soon_as_there_is_room() -> None:
    """Five tokens are expected, as one completion has shown: 15 held, 15 asked, then 20. What is counted goes on."""
    dispatch = dispatch_with(request("a"), engines={"e0": 40}, max_new_tokens=15)
    (first,) = dispatch.assign()["e0"]
    admit(dispatch, 1, completion(first, 0, tokens=5))
    dispatch.extend([request("b"), msgspec.structs.replace(request("c"), done=[0])])
    (begun,) = dispatch.assign()["e0"]
    assert begun.request.group_id == "c", "what was begun before goes first"
    assert admit(dispatch, 1, completion(first, 1, tokens=5))
    (last,) = dispatch.assign()["e0"]
    assert dispatch.report(Counter) is None
    assert all(admit(dispatch, 1, completion(lease, 1, tokens=5)) for lease in (begun, last))
    assert admit(dispatch, 1, completion(last, 0, tokens=5))
    report = dispatch.report(Counter)
    assert report is not None and (report.num_completions, report.response_tokens) == (5, 25)
    with pytest.raises(ProtocolError, match="group a is asked for twice"):
        dispatch.extend([request("a")])


def test_retractions_lower_the_budget_and_calm_raises_it() -> None:
    """1000 x 0.95^2 = 902, then 912: a group that asks for 887 beside the 25, then 20, that are held waits for it."""
    dispatch = dispatch_with(request("a", num=4), engines={"e0": 1000})
    (lease,) = dispatch.assign()["e0"]
    admit(dispatch, 1, completion(lease, 0, tokens=5, retractions=2))
    dispatch.add([request("b", 877)], 5)
    assert dispatch.tokens_in_flight("e0") == 10 + 3 * 5
    assert dispatch.assign() == {}
    admit(dispatch, 1, completion(lease, 1, tokens=5))
    assert dispatch.tokens_in_flight("e0") == 10 + 2 * 5
    assert ids(dispatch.assign()["e0"]) == ["b"]


def test_a_budget_falls_by_a_factor_and_rises_by_a_step() -> None:
    budget = TokenBudget(1000)
    budget.finished(2)
    assert budget.limit == 902  # 1000 x 0.95^2
    budget.finished(0)
    assert budget.limit == 912


def test_only_what_is_missing_of_a_lost_group_is_leased_again() -> None:
    dispatch = dispatch_with(request("a", num=3), engines={"e0": 100, "e1": 100})
    (lease,) = dispatch.assign()["e0"]
    admit(dispatch, 1, completion(lease, 1))
    assert dispatch.engine_down("e0") == ["a"]
    (again,) = dispatch.assign()["e1"]
    assert (again.attempt, again.indices) == (2, [0, 2])


def test_a_completion_of_an_earlier_lease_is_late() -> None:
    dispatch = dispatch_with(request("a"), engines={"e0": 100, "e1": 100})
    (lease,) = dispatch.assign()["e0"]
    dispatch.engine_down("e0")
    assert not admit(dispatch, 1, completion(lease, 0))  # queued, leased to nobody
    dispatch.assign()
    assert not admit(dispatch, 1, completion(lease, 0))
    assert admit(dispatch, 2, completion(lease, 0)) and admit(dispatch, 2, completion(lease, 1))
    assert not admit(dispatch, 1, completion(lease, 1))
    assert dispatch.counters == {"late_completion": 3, "lost_lease": 1}


def test_what_was_never_asked_for_or_comes_twice_is_dropped() -> None:
    dispatch = dispatch_with(request("a"), engines={"e0": 100})
    (lease,) = dispatch.assign()["e0"]
    assert admit(dispatch, 1, completion(lease, 0))
    assert not admit(dispatch, 1, completion(lease, 0))
    stranger = Lease(request=request("z"), attempt=1, indices=[0])
    assert not admit(dispatch, 1, completion(stranger, 0))
    assert dispatch.counters == {"duplicate_completion": 1, "unexpected_completion": 1}


def test_a_group_that_loses_every_engine_is_named() -> None:
    dispatch = dispatch_with(request("a"), engines={})
    for attempt in range(1, MAX_ATTEMPTS + 1):
        dispatch.engine_up("e0", 100)
        assert dispatch.assign()["e0"][0].attempt == attempt
        if attempt < MAX_ATTEMPTS:
            dispatch.engine_down("e0")
    with pytest.raises(RolloutError, match=rf"group a \(prompt a\) was lost with its engine {MAX_ATTEMPTS} times"):
        dispatch.engine_down("e0")


def test_a_group_cannot_be_asked_for_twice() -> None:
    dispatch = dispatch_with(request("a"), engines={})
    with pytest.raises(ProtocolError, match="group a is asked for twice"):
        dispatch.add([request("a")], 5)


def test_queued_groups_can_be_given_up() -> None:
    dispatch = dispatch_with(request("a", 20), request("b"), engines={"e0": 30})
    dispatch.assign()
    assert dropped(dispatch) == ["b-c00", "b-c01"]
    assert dispatch.num_left() == (2, 0)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6), num=st.integers(1, 4))
def test_any_order_of_events_admits_each_completion_once(data: st.DataObject, lengths: list[int], num: int) -> None:
    """Engines go up and down at random, completions arrive late, twice and out of order; then calm returns."""
    engines = ["e0", "e1", "e2"]
    dispatch = Dispatcher()
    dispatch.add([request(f"g{n}", tokens, num) for n, tokens in enumerate(lengths)], max_new_tokens=8)
    sent: list[tuple[str, Lease, int]] = []
    admitted: list[str] = []
    losses: dict[str, int] = {}
    up: set[str] = set()

    def assign() -> None:
        for engine, leases in dispatch.assign().items():
            assert engine in up
            sent.extend((engine, lease, index) for lease in leases for index in lease.indices)

    def arrive(at: int) -> None:
        _, lease, index = sent[at]
        found = completion(lease, index, tokens=data.draw(st.integers(0, 8)), retractions=data.draw(st.integers(0, 2)))
        if admit(dispatch, lease.attempt, found):
            admitted.append(found.head.completion_id)

    for _ in range(data.draw(st.integers(0, 30))):
        event = data.draw(st.sampled_from(["up", "down", "arrive", "assign"]))
        engine = data.draw(st.sampled_from(engines))
        if event == "up":
            dispatch.engine_up(engine, 60)
            up.add(engine)
        elif event == "down" and all(
            losses.get(lease.request.group_id, 0) < MAX_ATTEMPTS - 1 for name, lease, _ in sent if name == engine
        ):
            for group_id in dispatch.engine_down(engine):
                losses[group_id] = losses.get(group_id, 0) + 1
            up.discard(engine)
        elif event == "arrive" and sent:
            arrive(data.draw(st.integers(0, len(sent) - 1)))
        elif event == "assign":
            assign()
        assert all(dispatch.tokens_in_flight(name) == 0 for name in engines if name not in up)

    dispatch.engine_up("e0", 60)
    up.add("e0")
    while dispatch.num_left()[0]:
        before = dispatch.num_left()[0]
        assign()
        for at in range(len(sent)):
            arrive(at)
        assert dispatch.num_left()[0] < before, "nothing moves although an engine is up"
    assert sorted(admitted) == sorted(f"g{n}-c{index:02d}" for n in range(len(lengths)) for index in range(num))


def stopped_half_way() -> Dispatcher:
    """Group a is aborted after its first completion, group b never began."""
    dispatch = dispatch_with(request("a"), request("b"), engines={"e0": 20})
    (lease,) = dispatch.assign()["e0"]
    assert admit(dispatch, 1, completion(lease, 0))
    assert dropped(dispatch) == ["b-c00", "b-c01"]
    assert admit(dispatch, 1, completion(lease, 1, finish_reason="abort"))
    assert dispatch.num_left()[0] == 0
    return dispatch


def test_a_stopped_group_may_be_asked_for_again_and_its_attempts_go_on() -> None:
    dispatch = stopped_half_way()
    partial = Partial(
        index=1, tokens=TokenColumns(ids=[7] * 3, rollout_logprobs=[-1.0] * 3), versions=[VersionRun(0, 3)]
    )
    again = msgspec.structs.replace(request("a"), done=[0], partials=[partial])
    dispatch.add([request("c", 900), again, request("b")], 5)
    (lease,) = dispatch.assign()["e0"]  # before the longer one, as it was begun
    assert (lease.request.group_id, lease.attempt, lease.indices) == ("a", 2, [1])
    assert not admit(dispatch, 1, completion(lease, 1)), "a late completion of the stopped lease counted"
    assert admit(dispatch, 2, completion(lease, 1))
    assert ids(dispatch.assign()["e0"]) == ["c"]


def test_a_group_that_is_done_may_not_be_asked_for_again() -> None:
    dispatch = dispatch_with(request("a"), engines={"e0": 100})
    (lease,) = dispatch.assign()["e0"]
    assert admit(dispatch, 1, completion(lease, 0)) and admit(dispatch, 1, completion(lease, 1))
    with pytest.raises(ProtocolError, match="group a is asked for twice"):
        dispatch.add([request("a")], 5)


def test_what_was_lost_with_an_engine_is_dropped_when_stopping() -> None:
    dispatch = dispatch_with(request("a", num=3), engines={"e0": 100})
    (lease,) = dispatch.assign()["e0"]
    assert admit(dispatch, 1, completion(lease, 1))
    dispatch.engine_down("e0")
    assert dropped(dispatch) == ["a-c00", "a-c02"]
    assert dispatch.num_left()[0] == 0


def test_a_long_beginning_counts_for_more_than_the_expected_length() -> None:
    partial = Partial(
        index=0, tokens=TokenColumns(ids=[7] * 50, rollout_logprobs=[-1.0] * 50), versions=[VersionRun(0, 50)]
    )
    dispatch = dispatch_with(msgspec.structs.replace(request("a"), partials=[partial]), engines={"e0": 100})
    dispatch.assign()
    assert dispatch.tokens_in_flight("e0") == 10 + 50 + 5


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num_groups=st.integers(1, 4), num=st.integers(1, 3))
def test_steps_that_are_stopped_end_each_completion_once(data: st.DataObject, num_groups: int, num: int) -> None:
    """In each step some completions end, some are lost with an engine, and the rest is aborted or never begun."""
    dispatch = Dispatcher()
    dispatch.engine_up("e0", 40)
    dispatch.engine_up("e1", 40)
    done: dict[str, list[int]] = {f"g{n}": [] for n in range(num_groups)}
    late: list[tuple[Lease, int]] = []
    for step in range(4):
        asked = [
            msgspec.structs.replace(request(name, num=num), done=sorted(ended))
            for name, ended in done.items()
            if len(ended) < num
        ]
        dispatch.add(asked, 5)
        is_last = step == 3
        for _ in range(20 if is_last else data.draw(st.integers(0, 4))):
            leases = [lease for given in dispatch.assign().values() for lease in given]
            sent = [(lease, index) for lease in leases for index in lease.indices]
            for lease, index in sent:
                fate = "end" if is_last else data.draw(st.sampled_from(["end", "stay", "stay"]))
                if fate == "end":
                    assert admit(dispatch, lease.attempt, completion(lease, index))
                    done[lease.request.group_id].append(index)
                else:
                    late.append((lease, index))
            if not is_last and data.draw(st.booleans()) and all(lease.attempt < MAX_ATTEMPTS for lease, _ in late):
                dispatch.engine_down("e0")
                dispatch.engine_up("e0", 40)
        given_up = dropped(dispatch)
        aborted = 0
        for lease, index in late:
            end = completion(lease, index, finish_reason="abort")
            aborted += admit(dispatch, lease.attempt, end)
        assert dispatch.num_left()[0] == 0
        assert sum(map(len, done.values())) + aborted + len(given_up) == num * num_groups
    assert all(sorted(ended) == list(range(num)) for ended in done.values())


def aborted(lease: Lease, index: int) -> PackedCompletion:
    return completion(lease, index, finish_reason="abort")


def test_what_an_engine_aborts_by_itself_is_drawn_anew_once_the_rest_is_there() -> None:
    dispatch = dispatch_with(request("a", num=3), engines={"e0": 100})
    (lease,) = dispatch.assign()["e0"]
    assert not admit(dispatch, 1, aborted(lease, 1))
    assert not admit(dispatch, 1, aborted(lease, 1)), "it comes twice"
    assert dispatch.assign() == {}, "the others of its group are under way"
    assert admit(dispatch, 1, completion(lease, 0)) and admit(dispatch, 1, completion(lease, 2))
    (again,) = dispatch.assign()["e0"]
    assert (again.attempt, again.indices, again.num_aborts) == (2, [1], {1: 1})
    assert admit(dispatch, 2, completion(again, 1))
    assert (dispatch.num_left()[0], dispatch.counters["aborted_completion"]) == (0, 1)


def test_a_completion_that_is_aborted_again_and_again_ends_the_run() -> None:
    dispatch = dispatch_with(request("a", num=1), engines={"e0": 100})
    for number in range(MAX_ABORTS + 1):
        (lease,) = dispatch.assign()["e0"]
        assert lease.num_aborts == ({0: number} if number else {})
        assert not admit(dispatch, lease.attempt, aborted(lease, 0))
    with pytest.raises(RolloutError, match=r"a-c00 \(prompt a\) was aborted .* 4 times; .*set rollout\.top_p = 1"):
        dispatch.assign()


def test_a_lost_engine_and_a_stop_end_what_was_aborted_before() -> None:
    dispatch = dispatch_with(request("a", num=2), engines={"e0": 100})
    (lease,) = dispatch.assign()["e0"]
    assert not admit(dispatch, 1, aborted(lease, 0))
    dispatch.engine_down("e0")
    dispatch.engine_up("e0", 100)
    (lease,) = dispatch.assign()["e0"]
    assert (lease.indices, lease.num_aborts) == ([0, 1], {0: 1})
    assert not admit(dispatch, 2, aborted(lease, 0))
    assert dropped(dispatch) == ["a-c00"]
    assert admit(dispatch, 2, aborted(lease, 1)), "what is stopped comes back as aborted, and counts"
    assert dispatch.num_left()[0] == 0
