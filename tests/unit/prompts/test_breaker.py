"""The circuit breaker: when it opens, what a probe decides, and what it ignores."""

from hypothesis import given
from hypothesis import strategies as st

from prompts.breaker import Breaker, BreakerConfig

CONFIG = BreakerConfig(failures_in_row=3, window=10, failed_ratio=0.5, open_s=10)


def run(breaker: Breaker, now: float, *endings: bool) -> None:
    """Lets calls through, one after another, which end like that."""
    for is_good in endings:
        permit = breaker.admit(now)
        assert permit is not None
        breaker.record(permit, is_good=is_good, now=now)


def opened() -> Breaker:
    """A breaker that opened at 0."""
    breaker = Breaker(CONFIG)
    run(breaker, 0, False, False, False)
    return breaker


def test_breaker_opens_after_failures_in_a_row() -> None:
    """The third failure in a row opens it, and says so; a success between them begins the row anew."""
    breaker = Breaker(CONFIG)
    run(breaker, 0, False, False, True, False, False)
    assert breaker.state(0) == "closed"
    permit = breaker.admit(0)
    assert permit is not None
    assert breaker.record(permit, is_good=False, now=0)
    assert (breaker.state(0), breaker.admit(9.9)) == ("open", None)


def test_breaker_opens_at_a_share_of_failures() -> None:
    """Of the last ten calls five failed, never three in a row: that is the share at which it opens."""
    breaker = Breaker(CONFIG)
    run(breaker, 0, *[True, False] * 4, True)
    assert breaker.state(0) == "closed"
    run(breaker, 0, False)
    assert breaker.state(0) == "open"


def test_breaker_lets_one_probe_through() -> None:
    """After its time one call is let through and no second one, until that has ended."""
    breaker = opened()
    assert breaker.state(10) == "half_open"
    assert breaker.admit(10) is not None
    assert breaker.admit(10) is None


def test_breaker_closes_after_a_good_probe() -> None:
    """A probe that succeeds closes it, with no failure remembered."""
    breaker = opened()
    run(breaker, 10, True, False, False)
    assert breaker.state(10) == "closed"


def test_breaker_opens_again_after_a_bad_probe() -> None:
    """A probe that fails keeps it open for as long again."""
    breaker = opened()
    run(breaker, 10, False)
    assert (breaker.state(19.9), breaker.state(20)) == ("open", "half_open")


def test_breaker_takes_another_probe_when_one_was_left() -> None:
    """A probe whose caller went away decides nothing: the next call is the probe."""
    breaker = opened()
    permit = breaker.admit(10)
    assert permit is not None
    breaker.release(permit)
    assert breaker.admit(10) == permit


def test_breaker_ignores_what_began_before_it_opened() -> None:
    """A late success does not close it, a late failure does not keep it open, and a late leaver frees no probe."""
    breaker = Breaker(CONFIG)
    late = breaker.admit(0)
    assert late is not None
    run(breaker, 0, False, False, False)
    assert breaker.admit(10) is not None
    for is_good in (True, False):
        assert not breaker.record(late, is_good=is_good, now=10)
    breaker.release(late)
    assert (breaker.state(10), breaker.admit(10)) == ("half_open", None)


@given(st.lists(st.tuples(st.sampled_from(["good", "bad", "left"]), st.integers(0, 5)), max_size=80))
def test_breaker_is_never_closed_to_a_model_that_is_well(history: list[tuple[str, float]]) -> None:
    """Whatever happened, one pause and one good call later it is closed."""
    breaker, now = Breaker(CONFIG), 0
    for ending, pause_s in history:
        now += pause_s
        permit = breaker.admit(now)
        if permit is not None and ending == "left":
            breaker.release(permit)
        elif permit is not None:
            breaker.record(permit, is_good=ending == "good", now=now)
    run(breaker, now + CONFIG.open_s, True)
    assert breaker.state(now + CONFIG.open_s) == "closed"
