"""Timers: which instants there are, and who publishes them when."""

import asyncio
import datetime as dt
from typing import Any

import attrs
import msgspec
import pytest
from consume_kit import FakeBroker, ended
from harness import wait_until
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ApiError, BrokerUnavailable, DeclarationError
from streams import Context, SubjectTable, Tick
from streams.broker import WRONG_LAST_SEQUENCE, PubAck
from streams.deliveries import StoredMessage
from streams.ticks import Timer
from streams.timers import Timers, next_due

UTC = dt.UTC
BERLIN_CHANGES = [dt.datetime(2026, 3, 29, 1, tzinfo=UTC), dt.datetime(2026, 10, 25, 1, tzinfo=UTC)]
NEW_YORK_CHANGES = [dt.datetime(2026, 3, 8, 7, tzinfo=UTC), dt.datetime(2026, 11, 1, 6, tzinfo=UTC)]
CHANGES = st.builds(
    lambda change, off_s: change + dt.timedelta(seconds=off_s),
    st.sampled_from(BERLIN_CHANGES + NEW_YORK_CHANGES),
    st.floats(-10_800, 10_800),
)
"""Instants around which clocks change, where random ones seldom lie."""
INSTANTS = st.datetimes(dt.datetime(2024, 1, 1), dt.datetime(2030, 1, 1), timezones=st.just(UTC)) | CHANGES
TIMERS = st.one_of(
    st.sampled_from([1.0, 1.1, 1.5, 7.0, 60.0, 3600.0, 86_400.0]).map(
        lambda every_s: Timer(name="t.e", every_s=every_s)
    ),
    st.sampled_from(["0 7 * * *", "30 2 * * *", "*/30 * * * *", "15 3 1 * *", "0 0 * * 1", "5 4 29 2 *"]).flatmap(
        lambda cron: st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]).map(
            lambda tz: Timer(name="t.c", cron=cron, tz=tz)
        )
    ),
)


@given(TIMERS, INSTANTS)
def test_instants_follow_each_other_and_none_lies_between(timer: Timer, now: dt.datetime) -> None:
    """The newest instant until now and the next one after it are neighbours, on either side of now."""
    newest, following = timer.newest_until(now), timer.next_after(now)
    assert newest <= now < following
    assert timer.next_after(newest) == following
    assert timer.newest_until(newest) == newest
    assert {newest.tzinfo, following.tzinfo} == {UTC}


@pytest.mark.parametrize(
    ("start", "instants"),
    [
        pytest.param("2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"], id="skipped-in-spring"),
        pytest.param("2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"], id="twice-in-autumn"),
    ],
)
def test_cron_fires_once_on_the_days_on_which_clocks_change(start: str, instants: list[str]) -> None:
    """Half past two in Berlin: right after the gap in spring, the first of two in autumn."""
    timer, at, found = Timer(name="t.c", cron="30 2 * * *", tz="Europe/Berlin"), dt.datetime.fromisoformat(start), []
    at = at.replace(tzinfo=UTC)
    for _ in instants:
        at = timer.next_after(at)
        found.append(at.strftime("%Y-%m-%dT%H:%M"))
    assert found == instants


@pytest.mark.parametrize("change", BERLIN_CHANGES, ids=["spring", "autumn"])
@pytest.mark.parametrize("cron", ["30 2 * * *", "0 3 * * *", "*/30 * * * *", "30 1-3 * * *"])
def test_looks_at_any_minute_around_a_change_see_the_same_instants(change: dt.datetime, cron: str) -> None:
    """A publisher that starts within the hour that is skipped, or comes twice, knows the instants of one that ran."""
    timer, instants = Timer(name="t.c", cron=cron, tz="Europe/Berlin"), [change - dt.timedelta(days=3)]
    while instants[-1] < change + dt.timedelta(days=3):
        instants.append(timer.next_after(instants[-1]))
    for minute in range(-180, 180):
        now = change + dt.timedelta(minutes=minute, seconds=1)
        assert timer.next_after(now) == min(instant for instant in instants if instant > now)
        assert timer.newest_until(now) == max(instant for instant in instants if instant <= now)


@given(TIMERS, INSTANTS, st.lists(st.integers(-7200, 90_000), max_size=20))
def test_publisher_never_goes_back_whatever_the_clock_does(timer: Timer, now: dt.datetime, steps: list[int]) -> None:
    """Instants that are due are strictly increasing, though the clock is set back and workers pause."""
    last = None
    for step in steps:
        due = next_due(timer, last, now=now, started_at=now)
        assert last is None or due > last
        now = max(now, due) + dt.timedelta(seconds=step)
        last = due


def test_missed_instants_are_made_up_for_by_the_newest() -> None:
    """After a pause the last instant that passed is due at once, then the next regular one."""
    timer = Timer(name="t.e", every_s=60)
    at = dt.datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    now = at + dt.timedelta(minutes=10, seconds=30)
    due = next_due(timer, at, now=now, started_at=now)
    assert due == at + dt.timedelta(minutes=10)
    assert next_due(timer, due, now=now, started_at=now) == at + dt.timedelta(minutes=11)
    assert next_due(timer, None, now=now, started_at=now) == at + dt.timedelta(minutes=11)


async def nightly(tick: Tick, ctx: Context) -> None:
    """A timer's handler."""


async def wrong(event: Any, ctx: Context) -> None:
    """One without Tick."""


@pytest.mark.parametrize(
    ("declare", "problem"),
    [
        pytest.param(lambda t: t.timer(every_s=0.5), "every_s: expected 1 to 2678400 seconds, got 0.5", id="short"),
        pytest.param(lambda t: t.timer(every_s="5"), "every_s: expected .*, got '5'", id="text"),
        pytest.param(lambda t: t.cron("0 7 * *"), r"cron: expected five fields .*, got '0 7 \* \*'", id="fields"),
        pytest.param(lambda t: t.cron("0 0 7 * * *"), "cron: expected five fields .*, got '0 0 7", id="seconds"),
        pytest.param(lambda t: t.timer(every_s=2_678_401), "every_s: expected .*, got 2678401", id="long"),
        pytest.param(lambda t: t.cron("0 7 31 2 *"), "cron: expected .* that some instant fits", id="never"),
        pytest.param(lambda t: t.cron("0 7 * * *", tz="Mars"), "tz: expected a time zone's name, .*'Mars'", id="zone"),
    ],
)
def test_timer_that_can_not_fire_is_refused(declare: Any, problem: str) -> None:
    """The declaration is named with the field, its value and what is accepted."""
    with pytest.raises(DeclarationError, match=f"^subject table 'nights', timer 'nightly': {problem}"):
        declare(SubjectTable("nights"))(nightly)


def test_timer_takes_ticks_alone() -> None:
    """A handler of another event type is no timer's; one of a timer has its subject and its own lane."""
    with pytest.raises(DeclarationError, match="event: expected"):
        SubjectTable("nights").timer(every_s=5)(wrong)
    table = SubjectTable("nights")
    table.cron("0 7 * * *")(nightly)
    (handler,) = table.handlers
    tick = Tick(name="nights.nightly", at=dt.datetime(2026, 1, 1, tzinfo=UTC))
    assert (handler.subject, handler.key_of(tick)) == ("timers.nights.nightly", "nights.nightly")


class Stage:
    """A publisher with a clock of its own over a stream in memory."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.broker.publish_answer = self._publish
        self.now = dt.datetime(2026, 1, 1, 12, 0, 0, 500_000, tzinfo=UTC)
        self.fired: list[str] = []
        self.seq = 0
        self.errors: list[Exception] = []
        timer = Timer(name="nights.nightly", every_s=60)
        self.timers = Timers(self.broker, [timer], now=lambda: self.now)  # type: ignore[arg-type]

    async def _publish(self, subject: str, headers: dict[str, str]) -> PubAck:
        if self.errors:
            raise self.errors.pop(0)
        if headers["Nats-Expected-Last-Subject-Sequence"] != str(self.seq):
            raise ApiError(subject, WRONG_LAST_SEQUENCE, "wrong last sequence")
        self.put(headers["Nats-Msg-Id"].partition(":")[2])
        return PubAck(stream="TIMERS", seq=self.seq, is_duplicate=False)

    def put(self, at: str) -> None:
        """Stores a tick."""
        self.seq += 1
        self.fired.append(at)
        payload = msgspec.json.encode(Tick(name="nights.nightly", at=dt.datetime.fromisoformat(at)))
        self.broker.last = StoredMessage(subject="timers", seq=self.seq, ts=0, payload=payload, headers={})


async def test_publisher_that_was_overtaken_looks_again() -> None:
    """An instant that another process has published is not published a second time; trouble is told, and passes."""
    stage = Stage()
    stage.put("2026-01-01T11:58:00+00:00")
    stage.errors = [BrokerUnavailable("no answer"), ApiError("timers", 10164, "another one is on its way")]
    task = asyncio.create_task(stage.timers.run())
    try:
        await wait_until(lambda: stage.timers.troubles() == {"nights.nightly": "no answer"})
        stage.put("2026-01-01T12:00:00+00:00")  # somebody else, meanwhile
        await asyncio.sleep(0)
        stage.now += dt.timedelta(minutes=1)
        await wait_until(lambda: len(stage.fired) == 3)
        assert stage.fired[2] == "2026-01-01T12:01:00+00:00"
        assert stage.timers.troubles() == {}
    finally:
        await ended([task])


async def test_publisher_reads_a_strangers_message_by_its_time() -> None:
    """A message that is no tick tells the last instant by the time at which it was stored."""
    stage = Stage()
    stage.put("2026-01-01T11:58:00+00:00")
    ts = int(dt.datetime(2026, 1, 1, 11, 59, 30, tzinfo=UTC).timestamp()) * 10**9
    stage.broker.last = StoredMessage(subject="timers", seq=1, ts=ts, payload=b"hello", headers={})
    task = asyncio.create_task(stage.timers.run())
    try:
        await wait_until(lambda: len(stage.fired) == 2)
        assert stage.fired[1] == "2026-01-01T12:00:00+00:00"
    finally:
        await ended([task])


async def test_trouble_ends_with_the_next_answer_not_with_the_next_tick() -> None:
    """A connection that came back is no reason any more, though the timer fires much later."""
    stage = Stage()
    answer, stage.broker.last_message = stage.broker.last_message, no_answer  # type: ignore[method-assign]
    task = asyncio.create_task(stage.timers.run())
    try:
        await wait_until(lambda: stage.timers.troubles())
        stage.broker.last_message = answer  # type: ignore[method-assign]
        await wait_until(lambda: not stage.timers.troubles())
        assert stage.fired == []
    finally:
        await ended([task])


async def no_answer(stream: str, subject: str) -> StoredMessage:
    """A server that is away."""
    raise BrokerUnavailable("no answer")


async def test_last_instant_ahead_of_the_clock_is_told_and_not_repeated() -> None:
    """A clock that was set back fires nothing until it has passed the last instant, and /health says why."""
    stage = Stage()
    stage.put("2026-01-02T12:00:00+00:00")
    task = asyncio.create_task(stage.timers.run())
    try:
        await wait_until(lambda: "ahead of the clock" in stage.timers.troubles().get("nights.nightly", ""))
        assert len(stage.fired) == 1
    finally:
        await ended([task])


async def test_instant_beyond_the_calendar_is_a_strangers() -> None:
    """A message with a year after which no calendar goes on ends no publisher; its time serves."""
    stage = Stage()
    stage.put("9999-12-31T23:59:59+00:00")
    ts = int(dt.datetime(2026, 1, 1, 11, 59, 30, tzinfo=UTC).timestamp()) * 10**9
    stage.broker.last = attrs.evolve(stage.broker.last, ts=ts)  # type: ignore[type-var]
    task = asyncio.create_task(stage.timers.run())
    try:
        await wait_until(lambda: len(stage.fired) == 2)
        assert stage.fired[1] == "2026-01-01T12:00:00+00:00"
    finally:
        await ended([task])
