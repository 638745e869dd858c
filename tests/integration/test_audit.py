"""The audit on real servers: clean where all is well, and exact about what is not; and what a person may accept."""

import asyncio
import contextlib
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import attrs
from harness import NatsServer, wait_until
from service_kit import (
    SUBJECT,
    Step,
    all_acked,
    api,
    client,
    count_of,
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
from state.repair import Above
from state.sqlite import SqliteStore
from state.store import store_path
from state.tables import Table
from streams.audit import Report, audit_tables
from streams.broker import Broker
from streams.context import Context
from streams.losses import Loss, adopt, find_losses
from streams.policy import Policy
from streams.service import consumer_specs
from streams.subjects import SubjectTable
from streams.topology import ConsumerSpec


@attrs.frozen(kw_only=True)
class Total:
    """How many were applied."""

    count: int = 0


def specs(*tables: SubjectTable) -> list[ConsumerSpec]:
    """The durables of the tables."""
    return consumer_specs(tables, "test")


async def audited(url: str, state: Path, *tables: SubjectTable, first_seq: int = 1) -> Sequence[Report]:
    """Audits through a connection of its own."""
    async with Broker([url], name="audit") as broker:
        await broker.connected.wait()
        return await audit_tables(broker, store_path(state), specs(*tables), first_seq=first_seq)


def read_dead(state: Path) -> list[int]:
    """The sequences that were given up."""
    with sqlite3.connect(f"file:{store_path(state)}?mode=ro", uri=True) as store:
        return [seq for (seq,) in store.execute("select seq from dead order by seq")]


@contextlib.asynccontextmanager
async def owned(url: str, state: Path) -> AsyncIterator[tuple[Broker, SqliteStore]]:
    """A connection, and the store as a command has it while no worker runs."""
    store = SqliteStore(store_path(state))
    try:
        async with Broker([url], name="owner") as broker:
            await broker.connected.wait()
            yield broker, store
    finally:
        store.end_clean()
        store.close()


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
        assert (report.gaps.shown, report.gaps.count, report.is_good) == ([(3, 4), (9, 9)], 3, False)
        assert report.problems == [
            "1 messages were applied twice",
            "1 messages were given up and their dead letters are nowhere: 6",
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
        assert (before.expired.shown, before.expired.count, before.is_good) == ([(6, 8)], 3, False)
        assert before.removed == {"applied": 5, "dead": 0}
        async with running_service(nats_server.url, state, [table]):
            await rows_become(state, {"user0": [0, 1, 2, 3, 4, 8, 9]})
            await all_acked(nc)
        (after,) = await audited(nats_server.url, state, table)
        assert (after.expired.shown, after.counts["applied"], after.is_good) == ([(6, 8)], 2, False)
        (later,) = await audited(nats_server.url, state, table, first_seq=9)
        assert (later.expired.count, later.matched, later.is_good) == (0, 2, True)


def shared_table(fails: Collection[int] = ()) -> SubjectTable:
    """A table without order that counts its steps; some of them fail for as long as they are in ``fails``."""
    totals = Table("totals", Total, kind="counters")
    table = SubjectTable("steps", tables=[totals], order="none")

    async def step(event: Step, ctx: Context) -> None:
        if event.n in fails:
            raise Retry(delay_s=3600)
        if event.n < 0:
            raise Reject("never")
        ctx.add(totals, "all", "count", 1)

    table.on(SUBJECT, policy=Policy(backoff_s=(0.05,)))(step)
    return table


async def test_audit_of_a_table_without_order(nats_server: NatsServer, tmp_path: Path) -> None:
    """What the server keeps for a next attempt is pending, above its floor and in the store's notes; no gap."""
    state, table = tmp_path / "state", shared_table(fails=(3, 4))
    async with client(nats_server.url) as nc:
        (empty,) = await audited(nats_server.url, state, table)
        assert (empty.matched, empty.is_good) == (0, True)
        async with running_service(nats_server.url, state, [table]) as running:
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, [payload("u", n) for n in (0, 1, -1, *range(3, 50))])
            await wait_until(lambda: running.consumer().processed == 47, what="47 applied")
            (report,) = await audited(nats_server.url, state, table)
            assert report.counts == {"applied": 47, "dead": 1, "pending": 2, "skipped": 0}
            await wait_until(lambda: running.consumer().ack_pending == 2, what="the others acked")
        (stopped,) = await audited(nats_server.url, state, table)
        assert (stopped.counts, stopped.waiting_count, stopped.is_good) == (report.counts, 2, True)
        (nowhere,) = await audited(nats_server.url, tmp_path / "nowhere", table)
        assert (nowhere.counts["pending"], nowhere.is_good) == (50, True)
        await publish(nc, payloads(1, 3))
        (later,) = await audited(nats_server.url, state, table)
        assert (later.counts["pending"], later.gaps.count, later.is_good) == (5, 0, True)


async def test_adopted_durable_without_order_begins_where_its_new_store_does(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """No attach positions a shared durable, so adopting it from the start does: everything comes again."""
    table = shared_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, tmp_path / "one", [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 20))
            await all_acked(nc)
        state = tmp_path / "two"
        state.mkdir()
        async with owned(nats_server.url, state) as (broker, store):
            assert await adopt(broker, store, *specs(table), "start") == (0, True)
        async with running_service(nats_server.url, state, [table]) as running:
            await wait_until(lambda: running.consumer().processed == 20, what="20 applied")
        (report,) = await audited(nats_server.url, state, table)
        assert (report.counts["applied"], report.is_good) == (20, True)


async def test_audit_follows_outcomes_whose_messages_do_not_match(nats_server: NatsServer, tmp_path: Path) -> None:
    """An outcome of another table's message is a problem; one of a deleted message, or a former handler's, is none."""
    state, table = tmp_path / "state", step_table(subject="signals.*.step")
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 5), subject="signals.a.step")
            await publish(nc, payloads(1, 2), subject="signals.b.step")
            await all_acked(nc)
            await publish(nc, payloads(1, 1), subject="signals.other")
        await nc.jetstream().delete_msg("SIGNALS", 3)
        former = step_table(subject="signals.a.step")
        (report,) = await audited(nats_server.url, state, former)
        assert (report.counts["applied"], report.removed, report.is_good) == (4, {"applied": 1, "dead": 0}, True)
        with sqlite3.connect(store_path(state)) as store:
            store.execute("update ledger set bits = ?", (ledger.mark(None, range(1, 9))[0],))
        (strange,) = await audited(nats_server.url, state, table)
        assert strange.problems == ["1 messages have an outcome and don't match the table: 8"]


async def test_audit_reads_a_long_stream_while_a_worker_runs(nats_server: NatsServer, tmp_path: Path) -> None:
    """Audits in the middle of the work agree, each of its own moment; the audit leaves no consumer behind."""
    state, table = tmp_path / "state", step_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            sending = asyncio.create_task(publish(nc, payloads(100, 30)))
            count = 0
            while not sending.done():
                count += 1
                (report,) = await audited(nats_server.url, state, table)
                assert (report.is_good, report.matched) == (True, report.last_seq), report
            await sending
            assert count > 1
            await all_acked(nc)
        (report,) = await audited(nats_server.url, state, table)
        assert (report.counts["applied"], report.is_good) == (3000, True)

        async def is_tidy() -> bool:  # the server removes consumers a moment after it was told to
            return bool((await api(nc, "CONSUMER.NAMES.SIGNALS"))["consumers"] == ["test-steps"])

        await wait_until(is_tidy, what="the audit's consumers are gone")


async def accept(url: str, state: Path, table: SubjectTable) -> list[tuple[int, int]]:
    """Accepts every loss; (kept up to, goes on after) of each."""
    async with owned(url, state) as (broker, store):
        losses = await find_losses(broker, store, specs(table))
        for loss in losses:
            assert loss.is_over
            store.accept_loss(loss.floor, loss.cut)
        return [(loss.cut, loss.floor.seq) for loss in losses]


async def find(url: str, state: Path, table: SubjectTable) -> Sequence[Loss]:
    """Finds what was lost, and changes nothing."""
    async with owned(url, state) as (broker, store):
        return await find_losses(broker, store, specs(table))


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
        (refused,) = await audited(nats_server.url, state, table)
        assert ["accept-loss" in problem for problem in refused.problems] == [True]
        (loss,) = await find(nats_server.url, state, table)
        assert loss.above == Above(last=5, applied=3, dead=0, parked=0, unsent=0)
        assert await accept(nats_server.url, state, table) == [(2, 2)]
        assert await accept(nats_server.url, state, table) == []
        async with running_service(nats_server.url, state, [table]) as running:
            await rows_become(state, {"user0": [0, 1, 2, 3, 4, 70]})
            await running.is_ok()
            await all_acked(nc)
        (report,) = await audited(nats_server.url, state, table)
        assert (report.counts["applied"], report.gaps.count, report.lost) == (3, 0, [(3, 5)])


async def test_stream_that_only_lost_its_end_is_accepted_and_goes_on(nats_server: NatsServer, tmp_path: Path) -> None:
    """Restored and nothing published since: what comes next, on sequences that were applied or dead, is handled."""
    state, files = tmp_path / "state", nats_server.folder / "store"

    async def refuse_ninety(event: Step, ctx: Context) -> None:
        if event.n >= 90:
            raise Reject("never")

    table = step_table(refuse_ninety)
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [table]):
        await stream_is_there(nc, "DEAD_LETTERS")
        await publish(nc, payloads(1, 2))
        await all_acked(nc)
    nats_server.stop()
    shutil.copytree(files / "jetstream/$G/streams/SIGNALS", tmp_path / "older")
    nats_server.start()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [table]):
        await publish(nc, [payload("user0", n) for n in (2, 90, 91)])
        await wait_until(lambda: len(read_dead(state)) == 2, what="two given up")
        await all_acked(nc)
    nats_server.stop()
    shutil.rmtree(files / "jetstream/$G/streams/SIGNALS")
    (tmp_path / "older").rename(files / "jetstream/$G/streams/SIGNALS")
    nats_server.start()
    async with client(nats_server.url) as nc:
        (loss,) = await find(nats_server.url, state, table)
        assert (loss.cut, loss.above) == (2, Above(last=5, applied=1, dead=2, parked=0, unsent=0))
        assert await accept(nats_server.url, state, table) == [(2, 2)]
        assert read_dead(state) == []
        async with running_service(nats_server.url, state, [table]):
            await publish(nc, [payload("user0", n) for n in (92, 5, 93)])
            await rows_become(state, {"user0": [0, 1, 2, 5]})
            await all_acked(nc)
        (report,) = await audited(nats_server.url, state, table)
        assert report.counts == {"applied": 3, "dead": 2, "pending": 0, "skipped": 0}
        assert (report.matched, report.lost, report.problems) == (5, [(3, 5)], [])


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


async def test_stream_made_anew_and_purged_is_read_from_its_first_message(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """The new stream's first sequences belong to nobody: nothing the store knows of the former one is kept."""
    state, table = tmp_path / "state", step_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 5))
            await all_acked(nc)
        config = (await api(nc, "STREAM.INFO.SIGNALS"))["config"]
        await api(nc, "STREAM.DELETE.SIGNALS")
        await api(nc, "STREAM.CREATE.SIGNALS", config)
        await publish(nc, [payload("user0", n) for n in (6, 7, 8)])
        await nc.jetstream().purge_stream("SIGNALS", seq=3)
        assert await accept(nats_server.url, state, table) == [(0, 2)]
        async with running_service(nats_server.url, state, [table]):
            await rows_become(state, {"user0": [0, 1, 2, 3, 4, 8]})
            await all_acked(nc)
        (report,) = await audited(nats_server.url, state, table)
        assert (report.matched, report.counts["applied"], report.lost) == (1, 1, [(1, 5)])
        assert (report.removed["applied"], report.gaps.count, report.problems) == (0, 0, [])


async def test_messages_purged_above_the_floor_are_no_loss(nats_server: NatsServer, tmp_path: Path) -> None:
    """Marks of messages that retention has taken since don't tell of a loss; marks beyond the stream's end do."""
    state, table = tmp_path / "state", step_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 5))
            await all_acked(nc)
        with sqlite3.connect(store_path(state)) as store:  # as if the first one were still running
            store.execute("insert into marks select durable, 4, 1 from floors")
            store.execute("update floors set seq = 0, ts = 0")
        await nc.jetstream().purge_stream("SIGNALS", seq=5)
        assert await accept(nats_server.url, state, table) == []
        with sqlite3.connect(store_path(state)) as store:
            store.execute("insert into marks select durable, 5, 1 from floors")
        (other,) = await find(nats_server.url, state, table)
        assert (other.cut, other.floor.seq, other.why) == (4, 0, "the message at sequence 5 is another one")
        with sqlite3.connect(store_path(state)) as store:
            store.execute("update marks set seq = 6 where seq = 5")
        (loss,) = await find(nats_server.url, state, table)
        assert (loss.cut, loss.floor.seq, "ends before sequence 6" in loss.why) == (4, 0, True)


async def test_loss_whose_events_wait_is_not_over_until_they_are_published(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Events of a lost range are counted, and a worker that refuses the stream publishes them."""
    state, table = tmp_path / "state", step_table()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [table]):
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, payloads(1, 3))
            await all_acked(nc)
        config = (await api(nc, "STREAM.INFO.SIGNALS"))["config"]
        await api(nc, "STREAM.DELETE.SIGNALS")
        await api(nc, "STREAM.CREATE.SIGNALS", config)
        with sqlite3.connect(store_path(state)) as store:
            values = ("steps.step:SIGNALS:2:1:0", "test-steps:user0", "feedback.x", b"{}", "{}", time.time())
            names = "id, lane, subject, payload, headers, created"
            store.execute(f"insert into outbox ({names}) values (?, ?, ?, ?, ?, ?)", values)
        (loss,) = await find(nats_server.url, state, table)
        assert (loss.above, loss.is_over) == (Above(last=3, applied=3, dead=0, parked=0, unsent=1), False)
        async with running_service(nats_server.url, state, [table]) as running:
            await running.says("is not the one this store has read")
        assert await count_of(nc, "FEEDBACK", "feedback.x") == 1
        assert await accept(nats_server.url, state, table) == [(0, 0)]


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
        (loss,) = await find(nats_server.url, state, table)
        assert (loss.above, loss.is_over) == (Above(last=3, applied=0, dead=0, parked=3, unsent=0), False)
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
        for name, at, first in (("two", "floor", 4), ("three", "start", 0)):
            state = tmp_path / name
            state.mkdir()
            async with running_service(nats_server.url, state, [table]) as running:
                await running.says("streams adopt")
            (refused,) = await audited(nats_server.url, state, table)
            assert (refused.counts["pending"], "belongs to store" in refused.problems[0]) == (4 + (at == "start"), True)
            async with owned(nats_server.url, state) as (broker, store):
                (spec,) = specs(table)
                assert await adopt(broker, store, spec, at) == (first, True)  # type: ignore[arg-type]
                assert await adopt(broker, store, spec, at) == (first, False)  # type: ignore[arg-type]
            async with running_service(nats_server.url, state, [table]):
                if name == "two":
                    await publish(nc, payloads(1, 5)[4:])
                await rows_become(state, {"user0": list(range(first, 5))})
                await all_acked(nc)
            (report,) = await audited(nats_server.url, state, table)
            assert (report.counts["skipped"], report.matched, report.is_good) == (first, 5, True)
        async with running_service(nats_server.url, tmp_path / "one", [table]) as running:
            await running.says("belongs to store")
        assert read_rows(tmp_path / "one") == expected(1, 4)
