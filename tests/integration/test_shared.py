"""Tables without order: served by every worker of a STATE_DIR at once, each message applied once all the same."""

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from harness import NatsServer, wait_until
from service_kit import (
    Step,
    all_acked,
    client,
    count_of,
    messages_of,
    payload,
    payloads,
    publish,
    running_service,
    step_table,
    stream_is_there,
)

from models.errors import Retry
from state.sqlite import SqliteReader
from state.store import store_path
from state.tables import Table
from streams.context import Context
from streams.locks import LockFile
from streams.policy import Policy
from streams.service import OWNER_LOCK
from streams.subjects import SubjectTable

Behaviour = Callable[[Step, Context], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Total:
    """What was applied: how many, and the sum of their numbers."""

    count: int = 0
    n: int = 0


async def behave(event: Step, ctx: Context) -> None:
    """Succeeds at once."""


def shared_table(
    behaviour: Behaviour = behave,
    *,
    policy: Policy | None = None,
    subject: str = "signals.shared",
    output: str | None = None,
    **options: Any,
) -> SubjectTable:
    """A table without order that sums up its steps, once ``behaviour`` has returned."""
    totals = Table("totals", Total, kind="counters")
    table = SubjectTable("shared", tables=[totals], order="none", **options)

    async def step(event: Step, ctx: Context) -> None:
        await behaviour(event, ctx)
        ctx.add(totals, "all", "count", 1)
        ctx.add(totals, "all", "n", event.n)
        if output:
            ctx.publish(output, {"n": event.n})

    table.on(subject, policy=policy or Policy(backoff_s=(0.05,)))(step)
    return table


def total_of(state_dir: Path) -> Total:
    """What is committed."""
    if not store_path(state_dir).exists():
        return Total()
    reader = SqliteReader(store_path(state_dir))
    try:
        row = reader.fetch_row("totals", "all")
        return Total(**row.row) if row else Total()  # type: ignore[arg-type]
    finally:
        reader.close()


def select(state_dir: Path, query: str) -> list[Any]:
    """Asks the database."""
    with sqlite3.connect(f"file:{store_path(state_dir)}?mode=ro", uri=True) as store:
        return store.execute(query).fetchall()


async def total_becomes(state_dir: Path, count: int, timeout_s: float = 15) -> None:
    """Waits until so many are applied, then compares: each once."""
    await wait_until(lambda: total_of(state_dir).count >= count, timeout_s, what=f"{count} applied", poll_s=0.02)
    assert total_of(state_dir) == Total(count=count, n=sum(range(count)))


async def test_messages_without_order_are_applied_once_each(nats_server: NatsServer, tmp_path: Path) -> None:
    """Everything is summed exactly, its outputs are published once, and no marker stays behind the server's floor."""
    state = tmp_path / "state"
    table = shared_table(output="feedback.out")
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [table]) as running:
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, [payload("u", n) for n in range(300)], subject="signals.shared")
        await total_becomes(state, 300)
        await all_acked(nc, "shared")
        await running.is_ok()
        assert running.consumer("shared").role == "shared"
        await wait_until(lambda: running.service.health().nats.consumers["test-shared"].processed == 300)
        await wait_until(lambda: not running.service._shared or not running.service._shared.outbox.unsent_count)
        outputs = [json.loads(message.data)["n"] for message in await messages_of(nc, "FEEDBACK", "feedback.out")]
        assert sorted(outputs) == list(range(300))
        worker = running.service._worker("test-shared")
        assert worker is not None
        position = worker._hand.position
        assert position is not None
        await wait_until(lambda: (floor := position.advance()) and floor.seq == 300, what="the server's floor is known")
        await publish(nc, [payload("u", 300)], subject="signals.shared")  # its commit stores the floor
        await total_becomes(state, 301)
        await wait_until(lambda: select(state, "select seq from floors") >= [(300,)])
        assert select(state, "select count(*) from marks")[0][0] <= 1


async def test_two_workers_share_a_table_and_one_owns_the_others(nats_server: NatsServer, tmp_path: Path) -> None:
    """Both apply messages of the table without order, each once in all; the ordered one has an owner and a standby."""
    state = tmp_path / "state"

    async def dawdle(event: Step, ctx: Context) -> None:
        await asyncio.sleep(0.002)

    tables = [[shared_table(dawdle, concurrency=5), step_table()] for _ in range(2)]
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, tables[0]) as one,
        running_service(nats_server.url, state, tables[1]) as two,
    ):
        await stream_is_there(nc, "DEAD_LETTERS")
        await one.is_ok()
        await two.is_ok()
        await publish(nc, [payload("u", n) for n in range(2000)], subject="signals.shared")
        await publish(nc, payloads(3, 5))
        await total_becomes(state, 2000)
        await all_acked(nc, "shared")  # which follows the counting, as that follows the commit
        counts = [worker.consumer("shared").processed for worker in (one, two)]
        assert sum(counts) == 2000 and min(counts) > 0
        assert {worker.consumer().role for worker in (one, two)} == {"owner", "standby"}


async def test_survivor_applies_what_a_dead_worker_had(nats_server: NatsServer, tmp_path: Path) -> None:
    """Deliveries that a worker held when it was dropped come to the other one, and none is applied twice."""
    state = tmp_path / "state"
    is_stuck = True

    async def hang(event: Step, ctx: Context) -> None:
        if is_stuck:
            await asyncio.sleep(3600)

    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [shared_table(hang, ack_wait_s=1)]) as one,
    ):
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, [payload("u", n) for n in range(150)], subject="signals.shared")
        await wait_until(lambda: one.consumer("shared").ack_pending == 150)
        is_stuck = False
        async with running_service(nats_server.url, state, [shared_table(ack_wait_s=1)]):
            await one.crash()
            await total_becomes(state, 150)


async def test_failing_message_waits_on_the_server_and_then_becomes_one_dead_letter(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Attempts are counted in the store, so that two workers together give up after the limit, with all errors told."""
    state, runs = tmp_path / "state", 0

    async def fail(event: Step, ctx: Context) -> None:
        nonlocal runs
        if event.n == 7:
            runs += 1
            raise ValueError(f"attempt {runs}")

    def table() -> SubjectTable:
        return shared_table(fail, policy=Policy(max_deliver=4, backoff_s=(0.1,)))

    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [table()]) as one,
        running_service(nats_server.url, state, [table()]) as two,
    ):
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, [payload("u", n) for n in range(20)], subject="signals.shared")
        await wait_until(lambda: one.consumer("shared").dead_lettered + two.consumer("shared").dead_lettered == 1)
        await all_acked(nc, "shared")
        letters = await messages_of(nc, "DEAD_LETTERS")
        assert [letter.subject for letter in letters] == ["deadletters.SIGNALS.shared.step.8"]  # the 8th message is n=7
        told = [attempt["error"] for attempt in json.loads(letters[0].headers["Tipstream-Attempts"])]
        assert told == [f"ValueError: attempt {n}" for n in (1, 2, 3, 4)]
        assert runs == 4
        assert total_of(state).count == 19
        assert select(state, "select count(*) from tried") + select(state, "select count(*) from failures") == [
            (0,),
            (0,),
        ]


async def test_many_failing_messages_take_half_of_the_servers_places(nats_server: NatsServer, tmp_path: Path) -> None:
    """Beyond half of max_ack_pending they wait in the store, so that messages that work are not held up."""
    state, is_down, may_fail = tmp_path / "state", True, asyncio.Event()

    async def depend(event: Step, ctx: Context) -> None:
        await may_fail.wait()
        if is_down and event.n < 700:
            raise Retry(delay_s=3)

    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [shared_table(depend)]) as one:
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, [payload("u", n) for n in range(720)], subject="signals.shared")
        await wait_until(lambda: "test-shared: 720 messages in hand" in one.service.unfinished(), what="all in hand")
        may_fail.set()  # all within the time for which the first ones wait
        await wait_until(lambda: total_of(state).count >= 20)
        await wait_until(lambda: one.consumer("shared").parked >= 1)
        assert select(state, "select count(*) from tried where due > unixepoch()")[0][0] <= 500
        is_down = False
        await total_becomes(state, 720)
        await wait_until(lambda: one.consumer("shared").parked == 0)
        await all_acked(nc, "shared")
        assert await count_of(nc, "DEAD_LETTERS", "deadletters.>") == 0


async def test_vanished_shared_durable_is_made_anew_after_the_floor(nats_server: NatsServer, tmp_path: Path) -> None:
    """A deleted durable comes back by itself; what was applied is not applied again."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [shared_table()]) as one:
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, [payload("u", n) for n in range(50)], subject="signals.shared")
        await total_becomes(state, 50)
        await nc.jetstream().delete_consumer("SIGNALS", "test-shared")
        await publish(nc, [payload("u", n) for n in range(50, 60)], subject="signals.shared")
        await total_becomes(state, 60)
        await all_acked(nc, "shared")
        await one.is_ok()


@pytest.mark.parametrize("fault", ["kill", "restart"])
async def test_shared_table_survives_its_server(nats_server: NatsServer, tmp_path: Path, fault: str) -> None:
    """A server that goes and comes back, in order or not, loses nothing and has nothing applied twice."""
    state = tmp_path / "state"

    async def dawdle(event: Step, ctx: Context) -> None:
        await asyncio.sleep(0.005)

    async with (
        client(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1) as nc,
        running_service(nats_server.url, state, [shared_table(dawdle, ack_wait_s=2, concurrency=10)]),
    ):
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, [payload("u", n) for n in range(400)], subject="signals.shared")
        await wait_until(lambda: total_of(state).count > 50)
        if fault == "kill":
            nats_server.kill9()
        nats_server.restart()
        await total_becomes(state, 400)
        await all_acked(nc, "shared")  # what a killed server has forgotten comes again first


async def test_crew_that_has_stopped_takes_nothing_over(nats_server: NatsServer, tmp_path: Path) -> None:
    """A process that becomes the owner while it stops does not read the closed store of its shared tables."""
    state = tmp_path / "state"
    state.mkdir()
    lock = LockFile.open(state / OWNER_LOCK)
    assert lock.try_exclusive()
    async with running_service(nats_server.url, state, [shared_table()]) as one:
        await wait_until(lambda: one.service._shared and one.service._shared.workers)
        crew = one.service._shared
        assert crew is not None
        await one.stop()
        crew.own()
        assert crew.redrivers == {}
    lock.close()
