"""Timers on a real server: each instant is applied once, through restarts and beside a standby."""

import contextlib
import datetime as dt
from pathlib import Path

import attrs
import msgspec
from harness import NatsServer, wait_until
from nats.aio.client import Client
from service_kit import client, messages_of, running_service, stream_is_there

from state.sqlite import SqliteReader
from state.store import store_path
from state.tables import Table
from streams.context import Context
from streams.subjects import SubjectTable
from streams.ticks import Tick, Timer


@attrs.frozen(kw_only=True)
class Ticks:
    """The instants that were applied."""

    seen: tuple[dt.datetime, ...] = ()


def clock(every_s: float = 1) -> SubjectTable:
    """A timer that notes its instants."""
    rows = Table("ticks", Ticks)
    table = SubjectTable("clock", tables=[rows])

    @table.timer(every_s=every_s)
    async def second(tick: Tick, ctx: Context) -> None:
        row = ctx.get(rows, tick.name) or Ticks()
        ctx.put(rows, tick.name, Ticks(seen=(*row.seen, tick.at)))

    return table


def applied(state: Path) -> list[str]:
    """The instants in the store."""
    if not store_path(state).exists():
        return []
    with contextlib.closing(SqliteReader(store_path(state))) as reader:
        row = reader.fetch_row("ticks", "clock.second")
        return list(row.row["seen"]) if row else []  # type: ignore[call-overload]


async def published(nc: Client) -> list[dt.datetime]:
    """The instants in the stream."""
    found = await messages_of(nc, "TIMERS")
    return [msgspec.json.decode(message.data, type=Tick).at for message in found]


async def test_each_instant_is_applied_once_through_restarts(nats_server: NatsServer, tmp_path: Path) -> None:
    """Whole seconds, one after the other; a restart repeats none, and makes up for at most one that passed."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc:
        for count in (2, 4):
            async with running_service(nats_server.url, state, [clock()]) as running:
                await wait_until(lambda count=count: len(applied(state)) >= count)
                await running.is_ok()
        instants = await published(nc)
    assert instants == sorted(set(instants)) and len(instants) >= 4
    assert all(instant.microsecond == 0 for instant in instants)
    assert len(applied(state)) == len(set(applied(state)))


async def test_standby_fires_nothing_until_it_owns(nats_server: NatsServer, tmp_path: Path) -> None:
    """Two processes on one folder publish each instant once; the second goes on when the first is gone."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, contextlib.AsyncExitStack() as first:
        one = await first.enter_async_context(running_service(nats_server.url, state, [clock()]))
        await stream_is_there(nc, "TIMERS")
        async with running_service(nats_server.url, state, [clock()]) as two:
            await wait_until(lambda: len(applied(state)) >= 2)
            assert two.consumer("clock").role == "standby"
            await one.crash()
            await first.aclose()
            await wait_until(lambda: len(applied(state)) >= 4)
        instants = await published(nc)
        assert instants == sorted(set(instants))
        assert len(applied(state)) == len(set(applied(state)))


async def test_newest_missed_instant_is_made_up_for_once(nats_server: NatsServer, tmp_path: Path) -> None:
    """Of three instants that passed while nobody ran the last one is published, by the first of two starts."""
    state, timer = tmp_path / "state", Timer(name="clock.second", every_s=31 * 86_400)
    newest = timer.newest_until(dt.datetime.now(dt.UTC))
    old = newest - 3 * dt.timedelta(days=31)
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, []):
            await stream_is_there(nc, "TIMERS")
        await nc.jetstream().publish(timer.subject, msgspec.json.encode(Tick(name=timer.name, at=old)))
        for _ in range(2):
            async with running_service(nats_server.url, state, [clock(31 * 86_400)]) as running:
                await wait_until(lambda: len(applied(state)) == 2)
                await running.is_ok()
        assert await published(nc) == [old, newest]
        assert [dt.datetime.fromisoformat(instant) for instant in applied(state)] == [old, newest]


async def test_services_with_a_store_each_publish_each_instant_once(nats_server: NatsServer, tmp_path: Path) -> None:
    """Two owners of different stores, as after a mistake, are held apart by the stream's last sequence."""
    async with client(nats_server.url) as nc, contextlib.AsyncExitStack() as stack:
        for name in ("one", "two"):
            await stack.enter_async_context(running_service(nats_server.url, tmp_path / name, [clock()]))
        await stream_is_there(nc, "TIMERS")

        async def has_three() -> bool:
            return len(await published(nc)) >= 3

        await wait_until(has_three)
        instants = await published(nc)
        assert instants == sorted(set(instants))
