"""One durable, one store: a store that did not position a durable is refused, and both are named."""

import asyncio
import sqlite3
from pathlib import Path

from harness import NatsServer, wait_until
from service_kit import (
    all_acked,
    api,
    client,
    expected,
    info,
    payload,
    payloads,
    publish,
    read_rows,
    rows_become,
    running_service,
    step_table,
    stream_is_there,
)

from state.schema import examine_database
from state.store import store_path
from streams.locks import LockFile
from streams.service import OWNER_LOCK


async def test_store_beside_a_durable_of_another_store_is_refused_by_name(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """An empty store beside a used durable consumes nothing and names both stores; the other table goes on."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, mine, [step_table()]):
            await stream_is_there(nc)
            await publish(nc, payloads(2, 3))
            await rows_become(mine, expected(2, 3))
            await all_acked(nc)
        await publish(nc, [payload("user0", 3), payload("user1", 3)])
        tables = [step_table(), step_table(name="more", subject="feedback.step")]
        async with running_service(nats_server.url, other, tables) as running:
            await stream_is_there(nc, "FEEDBACK")
            await publish(nc, payloads(1, 2), subject="feedback.step")
            await rows_become(other, expected(1, 2), table="more")
            ids = [examine_database(store_path(folder)) for folder in (mine, other)]
            await running.says(f"durable test-steps belongs to store {ids[0]}, and this STATE_DIR holds store {ids[1]}")
            assert (running.consumer().status, running.consumer("more").status) == ("down", "ok")
            assert running.service.health().status == "degraded"
            assert (await info(nc))["num_pending"] == 2
            assert read_rows(other) == {}
        async with running_service(nats_server.url, mine, [step_table()]):
            await rows_become(mine, expected(2, 4))


async def test_refused_durable_is_tried_again_until_it_is_free(nats_server: NatsServer, tmp_path: Path) -> None:
    """A refusal stays until the reason is gone: when the other store's durable is deleted, consuming begins."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, mine, [step_table()]):
            await stream_is_there(nc)
            await publish(nc, payloads(1, 2))
            await rows_become(mine, expected(1, 2))
        async with running_service(nats_server.url, other, [step_table()]) as running:
            await running.says("belongs to store")
            assert running.service.health().status == "down"
            await api(nc, "CONSUMER.DELETE.SIGNALS.test-steps")
            await api(nc, "CONSUMER.DELETE.DEAD_LETTERS.test-steps-redrive")
            await rows_become(other, expected(1, 2))
            await running.is_ok()


async def test_durable_that_is_not_ours_is_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    """A durable of the same name that somebody made by hand is not taken over, and not changed."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc:
        config = {"name": "SIGNALS", "subjects": ["signals.>"], "storage": "file"}
        await api(nc, "STREAM.CREATE.SIGNALS", config)
        durable = {"name": "test-steps", "durable_name": "test-steps", "ack_policy": "explicit"}
        await api(nc, "CONSUMER.CREATE.SIGNALS.test-steps", {"stream_name": "SIGNALS", "config": durable})
        before = (await info(nc))["config"]
        async with running_service(nats_server.url, state, [step_table()]) as running:
            await publish(nc, payloads(1, 1))
            await running.says("durable test-steps was not made by this application")
        assert (await info(nc))["config"] == before
        assert read_rows(state) == {}


async def test_two_services_started_at_once_share_one_new_store(nats_server: NatsServer, tmp_path: Path) -> None:
    """Of two services that start together on an empty folder one owns the store and applies everything once."""
    state = tmp_path / "state"
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [step_table()]) as one,
        running_service(nats_server.url, state, [step_table()]) as two,
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(3, 20))
        await rows_become(state, expected(3, 20))
        await wait_until(lambda: one.consumer().processed + two.consumer().processed == 3 * 20)
        assert {one.consumer().role, two.consumer().role} == {"owner", "standby"}


async def test_service_dropped_while_it_opens_the_store_keeps_the_lock_until_that_ends(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Opening a store fences every older owner, so nobody may become one while an opening is still under way."""
    state = tmp_path / "state"
    async with running_service(nats_server.url, state, [step_table()]) as running:
        await wait_until(lambda: running.consumer().role == "owner")
    lock_path = state / OWNER_LOCK
    other = sqlite3.connect(store_path(state), isolation_level=None)
    try:
        other.execute("begin immediate")
        async with running_service(nats_server.url, state, [step_table()]) as dropped:
            await wait_until(lambda: not is_free(lock_path))
            dropped.task.cancel()
            await asyncio.wait([dropped.task], timeout=0.1)
            assert not is_free(lock_path)
            other.execute("rollback")
            await asyncio.wait([dropped.task], timeout=3)
            assert dropped.task.cancelled()
            assert is_free(lock_path)
    finally:
        other.close()


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock."""
    lock = LockFile.open(path)
    try:
        return lock.try_exclusive()
    finally:
        lock.close()
