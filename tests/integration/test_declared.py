"""What a subject table declares: where it starts, its version and former name, push delivery, counters, peeks."""

import asyncio
import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any

import attrs
import pytest
from harness import NatsServer, TcpProxy, wait_until
from service_kit import (
    QUICK,
    Step,
    Trace,
    all_acked,
    behave,
    client,
    expected,
    info,
    payload,
    payloads,
    publish,
    read_rows,
    rows_become,
    running_service,
    stream_is_there,
)

from state.store import store_path
from state.tables import Table
from streams.context import Context
from streams.subjects import SubjectTable


def traces(name: str = "steps", *, slow_s: float = 0.0, **options: Any) -> SubjectTable:
    """A table that records each step in its user's row; the row table keeps its name whatever the subject table's."""
    rows = Table("steps", Trace)
    table = SubjectTable(name, tables=[rows], **options)

    async def step(event: Step, ctx: Context) -> None:
        await asyncio.sleep(slow_s)
        row = ctx.get(rows, event.user_id) or Trace()
        ctx.put(rows, event.user_id, Trace(seen=(*row.seen, event.n)))

    table.on("signals.step", policy=QUICK)(step)
    return table


async def fill(url: str, *batches: list[bytes]) -> list[dt.datetime]:
    """Publishes batches to a stream that no worker has made yet; when each had been stored."""
    times = []
    async with client(url) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"])
        for batch in batches:
            await publish(nc, batch)
            await asyncio.sleep(0.05)
            times.append(dt.datetime.now(dt.UTC))
            await asyncio.sleep(0.05)
    return times


@pytest.mark.parametrize("order", ["key", "none"])
@pytest.mark.parametrize(
    ("start", "first"),
    [
        pytest.param("all", 0, id="all"),
        pytest.param("new", 20, id="new"),
        pytest.param(6, 5, id="sequence"),
        pytest.param("time", 10, id="instant"),
    ],
)
async def test_start_decides_the_first_position(
    nats_server: NatsServer, tmp_path: Path, start: Any, first: int, order: str
) -> None:
    """A new durable begins at all messages, new ones, a sequence or an instant; a restart does not begin anew."""
    times = await fill(nats_server.url, [payload("u", n) for n in range(10)], [payload("u", n) for n in range(10, 20)])
    seen: list[int] = []

    def table() -> SubjectTable:
        made = SubjectTable("steps", order=order, start=times[0] if start == "time" else start)  # type: ignore[arg-type]

        async def step(event: Step, ctx: Context) -> None:
            seen.append(event.n)

        made.on("signals.step")(step)
        return made

    async with client(nats_server.url) as nc:
        for last in (21, 22):
            async with running_service(nats_server.url, tmp_path / "state", [table()]) as running:
                await wait_until(lambda running=running: not running.service.unfinished())  # ok may come before
                await publish(nc, [payload("u", last - 1)])
                await wait_until(lambda last=last: seen and max(seen) == last - 1)
                await all_acked(nc)
        assert sorted(seen) == list(range(first, 22))
        with sqlite3.connect(store_path(tmp_path / "state")) as store:
            assert store.execute("select seq from since").fetchall() == [(first + 1,)]


@pytest.mark.parametrize(
    ("later", "durable"),
    [
        pytest.param({"version": 3}, "test-steps-v3", id="version"),
        pytest.param({"name": "walks", "renamed_from": "steps"}, "test-walks", id="name"),
        pytest.param({"name": "walks", "renamed_from": "steps", "version": 2}, "test-walks-v2", id="both"),
    ],
)
async def test_position_moves_along_with_a_version_or_a_name(
    nats_server: NatsServer, tmp_path: Path, later: dict[str, Any], durable: str
) -> None:
    """A new version, or a new name that says its former one, goes on after the last message, parked ones included."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [traces()]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(3, 4))
            await rows_become(state, expected(3, 4))
        async with running_service(nats_server.url, state, [traces(**later)]) as running:
            await publish(nc, payloads(3, 6)[12:])
            await rows_become(state, expected(3, 6))
            await all_acked(nc, durable.removeprefix("test-"))  # they are counted before that
            assert running.service.health().nats.consumers[durable].processed == 6
            assert (await info(nc, durable.removeprefix("test-")))["delivered"]["consumer_seq"] == 6


async def test_push_table_is_applied_once_and_in_order_through_faults(nats_server: NatsServer, tmp_path: Path) -> None:
    """A durable push consumer keeps the promises of a pull one: cut connections, a killed server, a restart."""
    state = tmp_path / "state"
    async with client(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1) as nc:
        async with (
            TcpProxy(nats_server.port) as proxy,
            running_service(proxy.url, state, [traces(delivery="push", slow_s=0.002)]) as running,
        ):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(7, 60))
            await wait_until(lambda: sum(map(len, read_rows(state).values())) > 50)
            proxy.cut()
            await wait_until(lambda: sum(map(len, read_rows(state).values())) > 150)
            nats_server.kill9()
            nats_server.restart()
            await rows_become(state, expected(7, 60))
            await running.is_ok()
            assert (await info(nc))["config"]["deliver_subject"]
        async with running_service(nats_server.url, state, [traces(delivery="push")]) as running:
            await publish(nc, payloads(7, 61)[420:])
            await rows_become(state, expected(7, 61))
            await all_acked(nc)


async def test_push_table_stops_listening_while_there_is_no_room(nats_server: NatsServer, tmp_path: Path) -> None:
    """A stop of the intake ends the subscription, /health says why, and afterwards all come, in order."""
    state = tmp_path / "state"
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [traces(delivery="push")]) as running,
    ):
        await stream_is_there(nc, "DEAD_LETTERS")
        await running.is_ok()
        worker = running.service._worker("test-steps")
        assert worker is not None
        worker._hand.parked_elsewhere = 10**9
        await running.says("PARKED_MAX")
        await wait_until(lambda: worker.consumer._inbox is None)
        await publish(nc, payloads(3, 5))
        worker._hand.parked_elsewhere = 0
        await rows_become(state, expected(3, 5))
        await running.is_ok()


async def test_delivery_that_changes_needs_a_new_version(nats_server: NatsServer, tmp_path: Path) -> None:
    """A durable can't be turned from pull to push: it is refused with the way out, and a new version goes on."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [traces()]) as running:
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(2, 3))
            await rows_become(state, expected(2, 3))
        async with running_service(nats_server.url, state, [traces(delivery="push")]) as running:
            await running.says("delivery 'pull' instead of 'push', which takes a new version of the table")
            assert running.consumer().status == "down"
        async with running_service(nats_server.url, state, [traces(delivery="push", version=2)]):
            await publish(nc, payloads(2, 5)[6:])
            await rows_become(state, expected(2, 5))


@attrs.frozen(kw_only=True)
class Sum:
    """A counter."""

    n: int = 0


async def test_add_from_many_lanes_is_exact_and_a_peek_is_kept(nats_server: NatsServer, tmp_path: Path) -> None:
    """64 lanes that add to one row lose no increment; what a handler peeked at lies beside its message."""
    state, sums, notes = tmp_path / "state", Table("sums", Sum, kind="counters"), Table("notes", Sum)
    table = SubjectTable("steps", tables=[sums, notes])

    async def step(event: Step, ctx: Context) -> None:
        await behave(event, ctx)
        ctx.add(sums, "all", "n", event.n)
        if event.n == 1:
            ctx.put(notes, event.user_id, Sum(n=5))
        elif event.n == 2:
            seen = ctx.peek(notes, event.user_id)
            ctx.put(notes, event.user_id, Sum(n=seen.n + 1 if seen else 0))

    table.on("signals.step")(step)
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [table]):
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, [payload(f"u{lane}", n) for n in range(20) for lane in range(64)])
        await all_acked(nc)
    with sqlite3.connect(store_path(state)) as store:
        assert store.execute("select row from rows where table_name = 'sums'").fetchall() == [
            (f'{{"n":{64 * 190}}}',)  # 0 + … + 19 are 190
        ]
        peeks = store.execute("select seq, name, key, value from peeks order by seq").fetchall()
    assert [peek[0] for peek in peeks] == list(range(129, 193))  # the third step of each of 64 users
    assert {peek[1] for peek in peeks} == {"notes"}
    assert {peek[3] for peek in peeks} <= {'{"n":5}', None}


async def test_server_without_consumer_reset_is_told_in_health(nats_server: NatsServer, tmp_path: Path) -> None:
    """On an older server durables are made anew at each attach; it works, and /health says what is not promised."""
    state, now_and_then = tmp_path / "state", (b'"version":"2.15.', b'"version":"2.13.')
    async with (
        client(nats_server.url) as nc,
        TcpProxy(nats_server.port, rewrite=now_and_then) as proxy,
        running_service(proxy.url, state, [traces()]) as running,
    ):
        await running.says("order through a fault is promised from 2.14 on")
        await wait_until(lambda: running.service.health().status == "degraded")
        await publish(nc, payloads(3, 10))
        await rows_become(state, expected(3, 10))
        proxy.cut()
        await publish(nc, payloads(3, 20)[30:])
        await rows_become(state, expected(3, 20))
        assert (await info(nc))["config"]["deliver_policy"] == "by_start_sequence"
