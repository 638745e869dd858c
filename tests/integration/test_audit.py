"""The audit on real servers: clean where all is well, and exact about what is not; and what a person may accept."""

import asyncio
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from harness import NatsServer, wait_until
from service_kit import (
    Step,
    all_acked,
    api,
    client,
    expected,
    payload,
    payloads,
    publish,
    read_rows,
    rows_become,
    running_service,
    step_table,
    stream_is_there,
)

from models.errors import Reject, Retry
from state import ledger
from state.sqlite import SqliteStore
from state.store import store_path
from streams.audit import Report, audit_tables
from streams.broker import Broker
from streams.context import Context
from streams.losses import adopt, find_losses
from streams.service import consumer_specs
from streams.subjects import SubjectTable
from streams.topology import ConsumerSpec


def specs(*tables: SubjectTable) -> list[ConsumerSpec]:
    """The durables of the tables."""
    return consumer_specs(tables, "test")


async def audited(url: str, state: Path, *tables: SubjectTable) -> Sequence[Report]:
    """Audits through a connection of its own."""
    async with Broker([url], name="audit") as broker:
        await broker.connected.wait()
        return await audit_tables(broker, store_path(state), specs(*tables))


async def test_audit_counts_every_message_once(nats_server: NatsServer, tmp_path: Path) -> None:
    """Applied, given up, parked, not delivered yet and not read: all are counted, whether or not a worker runs."""
    state = tmp_path / "state"

    async def behave(event: Step, ctx: Context) -> None:
        if event.user_id == "bad":
            raise Reject("never")
        if event.user_id == "late":
            raise Retry(delay_s=3600)

    table, other = step_table(behave), step_table(name="other", subject="signals.other")
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(3, 10))
            await publish(nc, [payload("bad", n) for n in range(4)] + [payload("late", n) for n in range(5)])
            await publish(nc, [payload("x", 1)], subject="signals.other")
            await all_acked(nc)
            (running,) = await audited(nats_server.url, state, table)
            assert running.counts == {"applied": 30, "dead": 4, "pending": 5, "skipped": 0}
            assert (running.is_good, running.matched) == (True, 39)
        await publish(nc, payloads(1, 2))
        reports = await audited(nats_server.url, state, table, other)
        assert [report.counts["pending"] for report in reports] == [7, 1]
        assert all(report.is_good for report in reports)


async def test_audit_names_an_outcome_that_is_missing(nats_server: NatsServer, tmp_path: Path) -> None:
    """A sequence that the store takes for done without any outcome is a gap, and a dead letter that is nowhere too."""
    state = tmp_path / "state"

    async def behave(event: Step, ctx: Context) -> None:
        if event.n == 5:
            raise Reject("never")

    table = step_table(behave)
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 20))
            await all_acked(nc)
        with sqlite3.connect(store_path(state)) as store:
            ((bits,),) = store.execute("select bits from ledger").fetchall()
            kept = [seq for seq in ledger.seqs(0, bits) if seq not in (3, 4, 9)]
            store.execute("update ledger set bits = ?, again = 1", (ledger.mark(None, kept)[0],))
        await nc.jetstream().purge_stream("DEAD_LETTERS")
        (report,) = await audited(nats_server.url, state, table)
        assert (report.gaps, report.gap_count, report.is_good) == ([(3, 4), (9, 9)], 3, False)
        assert report.problems == [
            "1 messages were applied twice",
            "message 6 was given up by steps.step, and its dead letter is nowhere",
        ]


async def test_audit_tells_what_the_stream_dropped_unread(nats_server: NatsServer, tmp_path: Path) -> None:
    """Messages purged while no worker ran are expired, before the next attach and after it."""
    state, table = tmp_path / "state", step_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 5))
            await all_acked(nc)
        await publish(nc, payloads(1, 10)[5:])
        await nc.jetstream().purge_stream("SIGNALS", seq=9)
        (before,) = await audited(nats_server.url, state, table)
        assert (before.expired, before.removed, before.is_good) == ([(6, 8)], 5, False)
        async with running_service(nats_server.url, state, [table]):
            await rows_become(state, {"user0": [0, 1, 2, 3, 4, 8, 9]})
            await all_acked(nc)
        (after,) = await audited(nats_server.url, state, table)
        assert (after.expired, after.counts["applied"], after.is_good) == ([(6, 8)], 2, False)


async def accept(url: str, state: Path, table: SubjectTable) -> list[tuple[int, int]]:
    """Accepts every loss; (kept up to, goes on after) of each."""
    store = SqliteStore(store_path(state))
    try:
        async with Broker([url], name="accept") as broker:
            await broker.connected.wait()
            losses = await find_losses(broker, store, specs(table))
            for loss in losses:
                assert not loss.parked_count
                store.accept_loss(loss.floor, loss.cut)
            return [(loss.cut, loss.floor.seq) for loss in losses]
    finally:
        store.end_clean()
        store.close()


async def test_accepted_loss_of_a_streams_end_goes_on_with_what_comes_on_its_sequences(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """A stream restored from an older copy: what came after is applied, though its sequences had been used."""
    state, files, table = tmp_path / "state", nats_server.folder / "store", step_table()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [table]):
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, payloads(1, 2))
        await all_acked(nc)
    nats_server.stop()
    shutil.copytree(files, tmp_path / "older")
    nats_server.start()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [table]):
        await publish(nc, payloads(1, 5)[2:])
        await rows_become(state, expected(1, 5))
    nats_server.stop()
    files.rename(tmp_path / "newer")
    (tmp_path / "older").rename(files)
    nats_server.start()
    async with client(nats_server.url) as nc:
        await publish(nc, [payload("user0", 70)])  # sequence 3 once more
        async with running_service(nats_server.url, state, [table]) as running:
            await running.says("accept it with 'streams accept-loss'")
        assert await accept(nats_server.url, state, table) == [(2, 2)]
        assert await accept(nats_server.url, state, table) == []
        async with running_service(nats_server.url, state, [table]) as running:
            await rows_become(state, {"user0": [0, 1, 2, 3, 4, 70]})
            await running.is_ok()
            await all_acked(nc)
        (report,) = await audited(nats_server.url, state, table)
        assert (report.counts["applied"], report.gap_count, report.lost) == (3, 0, [(3, 5)])


async def test_accepted_loss_of_a_whole_stream_begins_anew(nats_server: NatsServer, tmp_path: Path) -> None:
    """A stream that was deleted and made anew is read from its beginning once that is accepted."""
    state, table = tmp_path / "state", step_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 3))
            await rows_become(state, expected(1, 3))
            await all_acked(nc)
        config = (await api(nc, "STREAM.INFO.SIGNALS"))["config"]
        await api(nc, "STREAM.DELETE.SIGNALS")
        await api(nc, "STREAM.CREATE.SIGNALS", config)
        await publish(nc, [payload("user0", n) for n in (7, 8)])
        assert await accept(nats_server.url, state, table) == [(0, 0)]
        async with running_service(nats_server.url, state, [table]) as running:
            await rows_become(state, {"user0": [0, 1, 2, 7, 8]})
            await running.is_ok()


async def test_loss_that_parked_messages_belong_to_waits_for_them(nats_server: NatsServer, tmp_path: Path) -> None:
    """Messages of a lost range that wait in the store are counted, and a worker still runs them."""
    state, is_down = tmp_path / "state", True

    async def depend(event: Step, ctx: Context) -> None:
        if is_down:
            raise Retry(delay_s=0.05)

    table = step_table(depend)
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]) as running:
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 3))
            await wait_until(lambda: running.consumer().parked == 3)
            await all_acked(nc)
        config = (await api(nc, "STREAM.INFO.SIGNALS"))["config"]
        await api(nc, "STREAM.DELETE.SIGNALS")
        await api(nc, "STREAM.CREATE.SIGNALS", config)
        store = SqliteStore(store_path(state))
        async with Broker([nats_server.url], name="look") as broker:
            await broker.connected.wait()
            (loss,) = await find_losses(broker, store, specs(table))
        store.end_clean()
        store.close()
        assert loss.parked_count == 3
        is_down = False
        async with running_service(nats_server.url, state, [table]) as running:
            await running.says("is not the one this store has read")
            await rows_become(state, expected(1, 3))
        assert await accept(nats_server.url, state, table) == [(0, 0)]


async def test_adopted_durable_goes_on_in_its_new_store(nats_server: NatsServer, tmp_path: Path) -> None:
    """An empty store takes a durable over after what it had acked, or from the start; the former one is refused."""
    table = step_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, tmp_path / "one", [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 4))
            await all_acked(nc)
        await asyncio.sleep(0.2)  # the server flushes acks after a moment
        for name, at, first in (("two", "floor", 4), ("three", "start", 0)):
            state = tmp_path / name
            state.mkdir()
            async with running_service(nats_server.url, state, [table]) as running:
                await running.says("streams adopt")
            store = SqliteStore(store_path(state))
            async with Broker([nats_server.url], name="adopt") as broker:
                await broker.connected.wait()
                (spec,) = specs(table)
                assert await adopt(broker, store, spec, at) == (first, True)  # type: ignore[arg-type]
                assert await adopt(broker, store, spec, at) == (first, False)  # type: ignore[arg-type]
            store.end_clean()
            store.close()
            async with running_service(nats_server.url, state, [table]):
                if name == "two":
                    await publish(nc, payloads(1, 5)[4:])
                await rows_become(state, {"user0": list(range(first, 5))})
                await all_acked(nc)
        async with running_service(nats_server.url, tmp_path / "one", [table]) as running:
            await running.says("belongs to store")
        assert read_rows(tmp_path / "one") == expected(1, 4)
