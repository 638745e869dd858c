"""From facts to ok, degraded or down: the whole table."""

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.health import (
    ConsumerFacts,
    ConsumerHealth,
    DecisionFacts,
    DecisionHealth,
    Health,
    NatsHealth,
    StateHealth,
    Status,
    judge,
    judge_consumer,
    judge_decisions,
    with_decisions,
    with_reasons,
)

FINE = ConsumerFacts(info_age_s=0.2)
NATS = NatsHealth(enabled=True, mode="embedded", connected=True, rtt_ms=0.3)
DISABLED = NatsHealth(enabled=False, mode="disabled", connected=False)
DOWN = ConsumerHealth(status="down", reason="the durable is gone")
DEGRADED = ConsumerHealth(status="degraded", reason="paused until noon")
OK = ConsumerHealth()


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        pytest.param({}, "ok", None, id="idle"),
        pytest.param({"info_age_s": 1.5}, "ok", None, id="answer-just-young-enough"),
        pytest.param({"info_age_s": 1.51}, "down", "the server does not answer for it", id="answer-too-old"),
        pytest.param({"info_age_s": None}, "down", "the server does not answer for it", id="never-answered"),
        pytest.param({"is_missing": True}, "down", "the durable is gone", id="deleted"),
        pytest.param({"refused": "another store's"}, "down", "another store's", id="refused"),
        pytest.param({"detached": "attaching"}, "down", "attaching", id="detached"),
        pytest.param({"intake_stopped": "full"}, "degraded", "intake stopped: full", id="intake-stopped"),
        pytest.param({"paused_until": "noon"}, "degraded", "paused until noon", id="paused"),
        pytest.param({"unfinished": 3, "idle_s": 1.5}, "ok", None, id="outcome-just-young-enough"),
        pytest.param(
            {"unfinished": 3, "idle_s": 1.51}, "down", "stalled: 3 messages wait and nothing happens", id="stalled"
        ),
        pytest.param({"unfinished": 3, "idle_s": 99.0, "running_count": 1}, "ok", None, id="long-handler"),
        pytest.param({"unfinished": 0, "idle_s": 99.0}, "ok", None, id="nothing-to-do"),
        pytest.param(
            {"overdue": ("a.b", "a.c"), "running_count": 3},
            "degraded",
            "past its time and not to be cancelled: a.b, a.c",
            id="handlers-that-do-not-end",
        ),
        pytest.param(
            {"overdue": ("a.b",), "unfinished": 3, "idle_s": 99.0},
            "degraded",
            "past its time and not to be cancelled: a.b",
            id="nothing-happens-because-of-them",
        ),
        pytest.param(
            {"drift": ("a: 1 instead of 2", "b: 3 instead of 4")},
            "degraded",
            "the server's configuration differs (a: 1 instead of 2; b: 3 instead of 4): see 'streams plan'",
            id="drift",
        ),
    ],
)
def test_consumer_is_judged_by_its_facts(facts: dict[str, Any], status: Status, reason: str | None) -> None:
    """Each fact alone has its status, and whatever is not ok says why."""
    assert judge_consumer(attrs.evolve(FINE, **facts)) == (status, reason)


WORST_FIRST: list[dict[str, Any]] = [
    {"refused": "r1"},
    {"is_missing": True},
    {"detached": "d1"},
    {"info_age_s": 9.0},
    {"paused_until": "noon"},
    {"intake_stopped": "full"},
    {"overdue": ("a.b",)},
    {"unfinished": 1, "idle_s": 9.0},
    {"drift": ("a",)},
]


@pytest.mark.parametrize("first", range(len(WORST_FIRST)), ids=lambda n: next(iter(WORST_FIRST[n])))
def test_consumer_with_several_faults_tells_the_first_cause(first: int) -> None:
    """Of several facts that are not as they should be, the one that explains the others is told."""
    merged = {name: value for facts in WORST_FIRST[first:] for name, value in facts.items()}
    assert judge_consumer(attrs.evolve(FINE, **merged)) == judge_consumer(attrs.evolve(FINE, **WORST_FIRST[first]))


@given(
    st.builds(
        ConsumerFacts,
        info_age_s=st.none() | st.floats(0, 10),
        is_missing=st.booleans(),
        refused=st.none() | st.just("r"),
        detached=st.none() | st.just("d"),
        intake_stopped=st.none() | st.just("i"),
        unfinished=st.integers(0, 3),
        paused_until=st.none() | st.just("p"),
        idle_s=st.floats(0, 10),
        running_count=st.integers(0, 2),
        overdue=st.sampled_from([(), ("a.b",)]),
        drift=st.sampled_from([(), ("x",)]),
    )
)
def test_consumer_is_ok_only_when_seen_to_be(facts: ConsumerFacts) -> None:
    """An ok durable was seen in the last 1.5 s, and works or has nothing to do; anything else has a reason."""
    status, reason = judge_consumer(facts)
    assert (status == "ok") == (reason is None)
    if status == "ok":
        assert facts.info_age_s is not None and facts.info_age_s <= 1.5
        assert not (facts.is_missing or facts.refused or facts.detached or facts.intake_stopped or facts.paused_until)
        assert not (facts.overdue or facts.drift)
        assert not facts.unfinished or facts.idle_s <= 1.5 or facts.running_count


@pytest.mark.parametrize(
    ("consumers", "status", "reasons"),
    [
        pytest.param({}, "ok", [], id="no-consumer"),
        pytest.param({"a": OK, "b": OK}, "ok", [], id="all-ok"),
        pytest.param({"a": OK, "b": DEGRADED}, "degraded", ["consumer b: paused until noon"], id="one-degraded"),
        pytest.param({"a": OK, "b": DOWN}, "degraded", ["consumer b: the durable is gone"], id="one-down"),
        pytest.param({"a": DOWN}, "down", ["consumer a: the durable is gone"], id="the-only-one-down"),
        pytest.param(
            {"a": DOWN, "b": DEGRADED},
            "degraded",
            ["consumer a: the durable is gone", "consumer b: paused until noon"],
            id="down-and-degraded",
        ),
    ],
)
def test_process_is_judged_by_its_consumers(
    consumers: dict[str, ConsumerHealth], status: Status, reasons: list[str]
) -> None:
    """One consumer that is not ok degrades the process, and only all of them down take it down."""
    nats = attrs.evolve(NATS, consumers=consumers)
    health = judge(nats, StateHealth(), error=None)
    assert (health.status, health.reasons, health.nats, health.state) == (status, reasons, nats, StateHealth())


@pytest.mark.parametrize(
    ("nats", "error", "status", "reasons"),
    [
        pytest.param(DISABLED, None, "ok", [], id="disabled"),
        pytest.param(NATS, "old complaint", "ok", [], id="connected"),
        pytest.param(attrs.evolve(NATS, connected=False), None, "down", ["NATS does not answer"], id="gone"),
        pytest.param(
            attrs.evolve(NATS, connected=False, consumers={"a": OK}),
            "no route",
            "down",
            ["NATS does not answer (no route)"],
            id="gone-with-complaint",
        ),
        pytest.param(
            attrs.evolve(NATS, connected=False, consumers={"a": DEGRADED}),
            None,
            "down",
            ["NATS does not answer", "consumer a: paused until noon"],
            id="cause-before-effects",
        ),
    ],
)
def test_process_is_judged_by_its_connection(
    nats: NatsHealth, error: str | None, status: Status, reasons: list[str]
) -> None:
    """NATS that is enabled and does not answer takes the process down, first of all reasons; disabled it is ok."""
    health = judge(nats, StateHealth(), error=error)
    assert (health.status, health.reasons) == (status, reasons)


@pytest.mark.parametrize(
    ("nats", "state", "status"),
    [
        pytest.param(NATS, "down", "down", id="unwritable"),
        pytest.param(DISABLED, "down", "down", id="unwritable-without-nats"),
        pytest.param(NATS, "degraded", "degraded", id="degraded"),
        pytest.param(attrs.evolve(NATS, connected=False), "degraded", "down", id="degraded-and-nats-gone"),
    ],
)
def test_process_is_judged_by_its_store(nats: NatsHealth, state: Status, status: Status) -> None:
    """A store that takes no writes takes the process down; a lesser complaint degrades it and hides nothing."""
    health = judge(nats, StateHealth(status=state, reason="disk full"), error=None)
    assert (health.status, health.reasons[-1]) == (status, "state: disk full")


def test_process_with_a_further_complaint_is_degraded() -> None:
    """Sentences from elsewhere degrade the process and stand after the consumers'."""
    nats = attrs.evolve(NATS, consumers={"a": OK, "b": DEGRADED})
    health = judge(nats, StateHealth(), error=None, extra=("old server",))
    assert (health.status, health.reasons) == ("degraded", ["consumer b: paused until noon", "old server"])


@pytest.mark.parametrize(
    ("before", "more", "after"),
    [("ok", (), "ok"), ("ok", ("b",), "degraded"), ("degraded", ("b",), "degraded"), ("down", ("b",), "down")],
)
def test_more_reasons_degrade_and_improve_nothing(before: Status, more: tuple[str, ...], after: Status) -> None:
    """What others complain of stands after the rest, and makes nothing better than it was."""
    health = with_reasons(Health(status=before, reasons=["a"], nats=NATS, state=StateHealth()), more)
    assert (health.status, health.reasons) == (after, ["a", *more])


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        pytest.param({}, None, id="all-logged"),
        pytest.param({"buffered": 9, "published": 99, "sampled_out": 9, "dropped": {"full": 9}}, None, id="long-over"),
        pytest.param(
            {"is_dropping": True, "dropped": {"full": 3, "torn": 0, "too_large": 1}},
            "decisions are lost (full 3, too_large 1)",
            id="lost",
        ),
        pytest.param({"rate": 0.25}, "only 25% of the decisions are logged", id="sampled"),
        pytest.param({"spooled": 7}, "7 decisions wait on disk (on their way)", id="draining"),
        pytest.param(
            {"spooled": 7, "is_connected": False}, "7 decisions wait on disk (NATS does not answer)", id="gone"
        ),
        pytest.param({"spooled": 7, "error": "no stream"}, "7 decisions wait on disk (no stream)", id="refused"),
        pytest.param({"error": "disk full"}, "decisions can't be stored (disk full)", id="unwritable"),
        pytest.param(
            {"is_dropping": True, "dropped": {"full": 3}, "rate": 0.02, "spooled": 7},
            "decisions are lost (full 3); only 2% of the decisions are logged; 7 decisions wait on disk (on their way)",
            id="all-at-once",
        ),
        pytest.param({"is_enabled": False, "rate": 0.5, "error": "x", "spooled": 3}, None, id="disabled"),
    ],
)
def test_decision_log_is_judged_by_what_it_loses_or_holds_back(facts: dict[str, Any], reason: str | None) -> None:
    """It is degraded while decisions are lost, sampled or wait on disk, and says why; it is never down."""
    found = judge_decisions(DecisionFacts(**facts))
    assert (found.status, found.reason) == ("degraded" if reason else "ok", reason)


def test_decision_log_shows_its_counts() -> None:
    """All counts are shown as they are; without NATS the rate is 0, for nothing is logged."""
    counts: dict[str, Any] = {"buffered": 1, "spooled": 2, "spool_bytes": 3, "published": 4, "sampled_out": 5}
    shown = judge_decisions(DecisionFacts(rate=0.5, dropped={"full": 6}, **counts))
    assert attrs.asdict(shown) | {"reason": None} == {
        "status": "degraded", "reason": None, "rate": 0.5, "dropped": {"full": 6}, **counts
    }  # fmt: skip
    assert judge_decisions(DecisionFacts(is_enabled=False)).rate == 0.0


@pytest.mark.parametrize(("before", "after"), [("ok", "degraded"), ("degraded", "degraded"), ("down", "down")])
def test_decision_log_that_is_degraded_degrades_the_process(before: Status, after: Status) -> None:
    """Its reason stands after the others; one that is ok changes nothing."""
    health = Health(status=before, reasons=["a"], nats=NATS, state=StateHealth())
    found = with_decisions(health, DecisionHealth(status="degraded", reason="lost"))
    assert (found.status, found.reasons, found.decisions.reason) == (after, ["a", "decision log: lost"], "lost")
    assert with_decisions(health, DecisionHealth(rate=1.0)) == attrs.evolve(health, decisions=DecisionHealth(rate=1.0))
