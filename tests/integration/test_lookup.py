"""Events in doubt for longer than the dedupe window: looked up, and so never stored twice."""

import sqlite3
import time
from pathlib import Path

import pytest
from harness import NatsServer, wait_until
from service_kit import client, running_service, step_table
from streams_kit import make_change, make_outbox_row

from models.errors import BrokerUnavailable
from state.sqlite import SqliteStore
from state.store import OutboxRow, store_path
from streams.broker import Broker
from streams.lookup import stored_ids

LONG_AGO_S = 3600


def leave_rows(folder: Path, rows: list[OutboxRow]) -> None:
    """Leaves events in the store as a worker does that went down between PubAck and deletion, or before."""
    folder.mkdir()
    store = SqliteStore(store_path(folder))
    store.commit([make_change(1, outbox=rows)], [], marks=[], sent=[])
    store.close()


async def test_event_stored_by_an_earlier_process_is_not_stored_again(nats_server: NatsServer, tmp_path: Path) -> None:
    """Of 600 old events, those that the stream has already are only forgotten; the others are published once."""
    async with client(nats_server.url) as nc:
        js = nc.jetstream()
        await js.add_stream(name="SIGNALS", subjects=["signals.>"], duplicate_window=0.1)
        rows = [
            make_outbox_row(n, id=f"id-{n}", lane=f"lane-{n}", subject="signals.out", created=time.time() - LONG_AGO_S)
            for n in range(1, 601)
        ]
        for row in rows[::2]:
            await js.publish(row.subject, row.payload, headers={"Nats-Msg-Id": row.id})
        last = (await js.stream_info("SIGNALS")).state.last_seq
        over_at = time.monotonic() + 0.25
        await wait_until(lambda: time.monotonic() > over_at, what="the dedupe window is over")
        leave_rows(tmp_path / "state", rows)
        async with running_service(nats_server.url, tmp_path / "state", [step_table()]):
            await wait_until(lambda: _outbox_count(tmp_path / "state") == 0, what="an empty outbox")
        assert (await js.stream_info("SIGNALS")).state.last_seq == last + 300


def _outbox_count(folder: Path) -> int:
    with sqlite3.connect(store_path(folder)) as connection:
        return int(connection.execute("select count(*) from outbox").fetchone()[0])


async def test_lookup_that_ends_early_is_no_answer(nats_server: NatsServer) -> None:
    """Fewer messages than there were give an error, never "not stored"."""
    async with client(nats_server.url) as nc, Broker([nats_server.url], name="test") as broker:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"])
        await nc.jetstream().publish("signals.out", b"1", headers={"Nats-Msg-Id": "a"})
        await broker.connected.wait()
        config = {"name": "reader", "ack_policy": "none", "inactive_threshold": 30 * 10**9}
        await broker.api("CONSUMER.CREATE.SIGNALS.reader", {"stream_name": "SIGNALS", "config": config})
        with pytest.raises(BrokerUnavailable):
            assert [found async for found in broker.read("SIGNALS", "reader", 2, silent_s=0.2)] == []


async def test_lookup_finds_the_wanted_ids_alone(nats_server: NatsServer) -> None:
    """Of the wanted ids those that the stream holds are found; others, and messages without one, are passed over."""
    async with client(nats_server.url) as nc, Broker([nats_server.url], name="test") as broker:
        js = nc.jetstream()
        await js.add_stream(name="SIGNALS", subjects=["signals.>"])
        for headers in ({"Nats-Msg-Id": "a"}, {"Nats-Msg-Id": "x"}, None):
            await js.publish("signals.out", b"1", headers=headers)
        await broker.connected.wait()
        since = "2020-01-01T00:00:00+00:00"
        found = await stored_ids(broker, "SIGNALS", subjects=["signals.out"], since=since, wanted=["a", "b"])
        assert found == {"a"}

        async def is_tidy() -> bool:
            return await js.consumers_info("SIGNALS") == []

        await wait_until(is_tidy, what="the look-up's consumer is gone")
