"""When engines are held back, and what each is told."""

from hybridflow.wire.flow import MAX_ENGINES, WINDOW, EngineFlow
from hybridflow.wire.messages import Accepted


def test_what_arrived_is_accepted_once_and_a_hello_is_answered() -> None:
    flow = EngineFlow(limit_bytes=100)
    flow.accepted(b"x", [1])
    flow.accepted(b"x", [2])
    flow.asked(b"y", 7)
    assert flow.take_answers() == [(b"x", Accepted([1, 2], WINDOW)), (b"y", Accepted([], WINDOW, 7))]
    assert flow.take_answers() == []


def test_the_window_closes_at_the_limit_and_opens_at_half_of_it_for_every_engine() -> None:
    flow = EngineFlow(limit_bytes=100)
    for identity, engine_id in ((b"x", "e0"), (b"y", "e1")):
        assert flow.knows(identity, engine_id)
        flow.accepted(identity, [1])
    assert not flow.update(99, now=0.0)
    assert flow.update(100, now=1.0) and flow.is_held
    assert [answer.window for _, answer in flow.take_answers()] == [0, 0]
    assert not flow.update(51, now=2.0)
    assert flow.held_s(now=3.0) == 2.0
    assert flow.update(50, now=4.0) and not flow.is_held
    assert flow.take_answers() == [(b"x", Accepted([], WINDOW)), (b"y", Accepted([], WINDOW))]
    assert flow.held_s(now=9.0) == 3.0


def test_engines_are_bounded() -> None:
    flow = EngineFlow(limit_bytes=100)
    known = [flow.knows(b"x", f"e{number}") for number in range(20_000)]
    assert (known.count(True), flow.knows(b"y", "e0")) == (MAX_ENGINES, True)


def test_after_a_restart_nothing_is_said_on_old_connections() -> None:
    flow = EngineFlow(limit_bytes=100)
    flow.accepted(b"x", [1])
    flow.reconnect()
    assert flow.take_answers() == []
