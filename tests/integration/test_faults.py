"""Faults of the connection and of the server while messages flow: nothing is lost, nothing is applied twice.

Each test counts from outside: what it has published (each confirmed), the rows, and the durable on the server.
"""

import asyncio
from pathlib import Path

import msgspec
import nats.errors
from harness import NatsServer, TcpProxy, wait_until
from nats.aio.client import Client
from service_kit import (
    SUBJECT,
    Step,
    all_acked,
    client,
    count_of,
    expected,
    info,
    messages_of,
    payload,
    payloads,
    publish,
    read_rows,
    rows_become,
    running_service,
    step_table,
    stream_is_there,
)

from streams.context import Context

ECHO = "signals.echo"


async def work(event: Step, ctx: Context) -> None:
    """Takes a moment, and publishes, so that acks and events are under way whenever a fault strikes."""
    await asyncio.sleep(0.002 * (event.n % 4))
    ctx.publish(ECHO, {"user_id": event.user_id, "n": event.n})


def applied_count(state: Path) -> int:
    """The steps applied so far."""
    return sum(map(len, read_rows(state).values()))


async def publish_through_faults(nc: Client, user_count: int, each: int) -> None:
    """Publishes in order, repeating under the same id whatever was not confirmed."""
    js = nc.jetstream(timeout=1)
    for n in range(each):
        for user in range(user_count):
            while True:
                try:
                    message = payload(f"user{user}", n)
                    await js.publish(SUBJECT, message, headers={"Nats-Msg-Id": f"{user}:{n}"})
                    break
                except (nats.errors.Error, OSError):
                    await asyncio.sleep(0.02)


async def echoes_are_complete(nc: Client, user_count: int, each: int) -> None:
    """Checks that every applied message's event was published once, in order per key."""

    async def has_all() -> bool:
        return await count_of(nc, "SIGNALS", ECHO) >= user_count * each

    await wait_until(has_all, what="all events published")
    echoes = [msgspec.json.decode(message.data, type=Step) for message in await messages_of(nc, "SIGNALS", ECHO)]
    for user in range(user_count):
        assert [echo.n for echo in echoes if echo.user_id == f"user{user}"] == list(range(each))


async def test_connection_cut_in_midstream_loses_and_repeats_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    """The worker's connection is cut five times while it works through a backlog."""
    state = tmp_path / "state"
    reconnects: list[int] = []
    was_cut = asyncio.Event()

    async def work_and_wait(event: Step, ctx: Context) -> None:
        await work(event, ctx)
        if event.n >= 45:
            await was_cut.wait()

    async with (
        TcpProxy(nats_server.port) as proxy,
        client(nats_server.url) as nc,
        running_service(proxy.url, state, [step_table(work_and_wait)]) as running,
    ):
        await stream_is_there(nc)
        running.broker.on_reconnect(lambda: reconnects.append(applied_count(state)))
        await publish(nc, payloads(20, 50))
        for count in (50, 250, 450, 650, 850):
            await wait_until(lambda count=count: applied_count(state) >= count, what=f"{count} applied")
            proxy.cut()
            done = len(reconnects)
            await wait_until(lambda done=done: len(reconnects) > done, what="reconnected")
        was_cut.set()
        await rows_become(state, expected(20, 50))
        await all_acked(nc)
        await echoes_are_complete(nc, 20, 50)
        await running.is_ok()


async def test_connection_that_goes_silent_is_noticed_and_replaced(nats_server: NatsServer, tmp_path: Path) -> None:
    """A connection that stays open and carries nothing makes /health down, and all is well again once it is healed."""
    state = tmp_path / "state"
    async with (
        TcpProxy(nats_server.port) as proxy,
        client(nats_server.url) as nc,
        running_service(proxy.url, state, [step_table(work)]) as running,
    ):
        await stream_is_there(nc)
        await running.is_ok()
        await publish(nc, payloads(5, 20))
        proxy.blackhole()
        await publish(nc, [payload(f"user{user}", n) for n in range(20, 40) for user in range(5)])
        await wait_until(lambda: running.service.health().status == "down", 3)
        proxy.heal()
        await rows_become(state, expected(5, 40))
        await all_acked(nc)
        await echoes_are_complete(nc, 5, 40)
        await running.is_ok()


async def test_server_killed_in_midstream_loses_and_repeats_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    """kill -9 of nats-server, twice, while messages are published and applied."""
    state = tmp_path / "state"
    options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.05, "error_cb": _ignore}
    async with (
        client(nats_server.url, **options) as nc,
        running_service(nats_server.url, state, [step_table(work)]) as running,
    ):
        await stream_is_there(nc)
        publisher = asyncio.create_task(publish_through_faults(nc, 10, 40))
        for count in (80, 240):
            await wait_until(lambda count=count: applied_count(state) >= count, what=f"{count} applied")
            nats_server.kill9()
            nats_server.start()
        await publisher
        await rows_become(state, expected(10, 40))
        await all_acked(nc)
        await echoes_are_complete(nc, 10, 40)
        await running.is_ok()


async def test_frozen_server_is_down_in_health_and_ok_once_it_goes_on(nats_server: NatsServer, tmp_path: Path) -> None:
    """SIGSTOP of nats-server shows in /health within two seconds (three here); after SIGCONT it says ok again."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]) as running:
        await stream_is_there(nc)
        await publish(nc, payloads(3, 1))
        await rows_become(state, expected(3, 1))
        await running.is_ok()
        nats_server.pause()
        try:
            await running.says("NATS does not answer", 3)
            assert running.service.health().status == "down"
            await wait_until(lambda: running.consumer().status == "down", 3)
        finally:
            nats_server.resume()
        await running.is_ok()
        await publish(nc, payloads(3, 3)[3:])
        await rows_become(state, expected(3, 3))


async def test_worker_dropped_in_midstream_continues_exactly(nats_server: NatsServer, tmp_path: Path) -> None:
    """A worker that ends without draining, three times, leaves a store from which the next one goes on exactly."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc:
        for count in (60, 180, 300):
            async with running_service(nats_server.url, state, [step_table(work)]) as running:
                await stream_is_there(nc)
                if count == 60:
                    await publish(nc, payloads(10, 40))
                await wait_until(lambda count=count: applied_count(state) >= count, what=f"{count} applied")
                await running.crash()
        async with running_service(nats_server.url, state, [step_table(work)]):
            await rows_become(state, expected(10, 40))
            await all_acked(nc)
            await echoes_are_complete(nc, 10, 40)


async def test_stop_with_a_backlog_leaves_nothing_to_redeliver(nats_server: NatsServer, tmp_path: Path) -> None:
    """A stop in mid-stream finishes what was delivered: nothing unacked, nothing redelivered, the rest pending."""
    state = tmp_path / "state"
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [step_table(work, concurrency=5)]) as running,
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(50, 40), at_once=500)
        await wait_until(lambda: applied_count(state) >= 200)
        await running.stop()

        async def is_clean() -> bool:  # the server takes acks a moment after it has read them
            return (await info(nc))["num_ack_pending"] == 0

        await wait_until(is_clean, 2)
        found = await info(nc)
        assert found["num_redelivered"] == 0
        assert applied_count(state) + found["num_pending"] == 50 * 40


async def test_events_wait_in_the_store_while_the_server_is_away(nats_server: NatsServer, tmp_path: Path) -> None:
    """A stop without a server keeps unpublished events and dead letters; the next worker publishes them once."""
    gate = asyncio.Event()

    async def wait_then_publish(event: Step, ctx: Context) -> None:
        await gate.wait()
        await work(event, ctx)

    state = tmp_path / "state"
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [step_table(wait_then_publish)]) as running,
    ):
        await stream_is_there(nc)
        await publish(nc, [*payloads(3, 2), b"broken"])
        await wait_until(lambda: "test-steps: 6 messages in hand" in running.service.unfinished(), what="6 in hand")
        nats_server.stop()
        gate.set()
        await rows_become(state, expected(3, 2))
        await running.stop()
    nats_server.start()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table(work)]):
        await echoes_are_complete(nc, 3, 2)
        await all_acked(nc)
        [letter] = await messages_of(nc, "DEAD_LETTERS")
        assert letter.data == b"broken"
        assert read_rows(state) == expected(3, 2)


async def _ignore(error: Exception) -> None:
    """nats-py prints errors without one of these."""
