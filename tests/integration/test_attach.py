"""What other people do to the durable and to the stream: noticed, said in /health, and never a silent loss."""

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest
from harness import NatsServer, wait_until
from nats.aio.client import Client
from service_kit import (
    Running,
    Step,
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

from streams.context import Context

DURABLE = "SIGNALS.test-steps"


async def dawdle(event: Step, ctx: Context) -> None:
    """Takes a moment."""
    await asyncio.sleep(0.002)


async def test_deleted_durable_is_made_anew_at_the_next_message(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A durable deleted in mid-stream is created again after the floor: nothing is lost and nothing applied twice."""
    state = tmp_path / "state"
    was_deleted = asyncio.Event()

    async def wait_in_the_middle(event: Step, ctx: Context) -> None:
        if event.n >= 20:
            await was_deleted.wait()

    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [step_table(wait_in_the_middle)]) as running,
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(5, 40))
        await rows_become(state, expected(5, 20))
        assert (await api(nc, f"CONSUMER.DELETE.{DURABLE}"))["success"]
        was_deleted.set()
        await rows_become(state, expected(5, 40))
        await all_acked(nc)
        assert (await info(nc))["delivered"]["stream_seq"] == 5 * 40
        assert running.consumer().processed == 5 * 40
        assert any("Consumer Deleted" in str(record.__dict__.get("fields")) for record in caplog.records)
        await running.is_ok()


async def update_consumer(nc: Client, **fields: object) -> None:
    """Changes a durable by hand, as somebody with the nats command would."""
    config = (await info(nc))["config"] | fields
    answer = await api(
        nc, f"CONSUMER.CREATE.{DURABLE}", {"stream_name": "SIGNALS", "action": "update", "config": config}
    )
    assert "error" not in answer, answer


async def test_durable_that_refuses_every_pull_is_down_in_health(nats_server: NatsServer, tmp_path: Path) -> None:
    """A limit set by hand that refuses our pulls shows in /health with the server's words, without a busy loop."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]) as running:
        await stream_is_there(nc)
        await publish(nc, payloads(1, 1))
        await rows_become(state, expected(1, 1))
        await update_consumer(nc, max_batch=10)
        requests = 0

        async def count(message: object) -> None:
            nonlocal requests
            requests += 1

        await nc.subscribe(f"$JS.API.CONSUMER.MSG.NEXT.{DURABLE}", cb=count)
        assert (await api(nc, f"CONSUMER.RESET.{DURABLE}", {"seq": 2})) is not None  # ends the pulls that wait
        await publish(nc, payloads(1, 2)[1:])
        await running.says("409 Exceeded MaxRequestBatch")
        assert running.consumer().status == "down"
        assert requests < 20
        await update_consumer(nc, max_batch=0)
        await rows_become(state, expected(1, 2))
        await running.is_ok()


async def test_stolen_deliveries_are_noticed_and_nothing_is_lost(nats_server: NatsServer, tmp_path: Path) -> None:
    """Another client that takes messages from the durable leaves a gap: the worker attaches anew and gets them all."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table(dawdle)]) as running:
        await stream_is_there(nc)
        await running.is_ok()
        stolen: list[int] = []

        async def steal(message: object) -> None:
            stolen.append(len(stolen))

        inbox = nc.new_inbox()
        await nc.subscribe(inbox, cb=steal)
        for n in range(60):
            if n in (10, 30):
                request = msgspec.json.encode({"batch": 5, "expires": 1_000_000_000})
                await nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.{DURABLE}", request, reply=inbox)
            await publish(nc, [payload("user0", n)])
        await rows_become(state, expected(1, 60))
        assert stolen
        await all_acked(nc)


async def test_deleted_stream_is_refused_and_never_made_anew(nats_server: NatsServer, tmp_path: Path) -> None:
    """A stream that is gone stays gone, and /health says which and up to where it had been read; others go on."""
    state = tmp_path / "state"
    tables = [step_table(), step_table(name="other", subject="feedback.step")]
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, tables) as running:
            await stream_is_there(nc, "FEEDBACK")
            await publish(nc, payloads(1, 3))
            await rows_become(state, expected(1, 3))
            await all_acked(nc)
            await nc.jetstream().delete_stream("SIGNALS")
            await running.says("stream SIGNALS is gone, and this store has read it up to sequence 3")
            assert running.consumer().status == "down"
            await publish(nc, payloads(1, 2), subject="feedback.step")
            await rows_become(state, expected(1, 2), table="other")
            assert running.service.health().status == "degraded"
        async with running_service(nats_server.url, state, tables) as running:
            await running.says("stream SIGNALS is gone")
        assert (await api(nc, "STREAM.INFO.SIGNALS"))["error"]["err_code"] == 10059


async def recreate(nc: Client) -> None:
    """Deletes the stream and makes it anew with the same configuration."""
    config = (await api(nc, "STREAM.INFO.SIGNALS"))["config"]
    assert (await api(nc, "STREAM.DELETE.SIGNALS"))["success"]
    assert "error" not in await api(nc, "STREAM.CREATE.SIGNALS", config)


async def test_recreated_stream_is_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    """A stream made anew under the same name reuses sequences: its messages are not taken for those read before."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]) as running:
        await stream_is_there(nc)
        await publish(nc, payloads(1, 3))
        await rows_become(state, expected(1, 3))
        await recreate(nc)
        await publish(nc, [payload("user0", n) for n in (7, 8, 9, 10)])
        await running.says("stream SIGNALS is not the one this store has read up to sequence 3: it was created at")
        assert read_rows(state) == expected(1, 3)


async def test_stream_that_lost_its_end_is_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    """A stream restored from an older copy of its files ends before the floor, and the worker says so."""
    state = tmp_path / "state"
    store = nats_server.folder / "store"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]):
        await stream_is_there(nc)
        await publish(nc, payloads(1, 2))
        await rows_become(state, expected(1, 2))
        await all_acked(nc)
    nats_server.stop()
    shutil.copytree(store, tmp_path / "older")
    nats_server.start()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]):
        await publish(nc, payloads(1, 5)[2:])
        await rows_become(state, expected(1, 5))
    nats_server.stop()
    store.rename(tmp_path / "newer")
    (tmp_path / "older").rename(store)
    nats_server.start()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]) as running:
        await running.says("it ends at sequence 2")
        await publish(nc, [payload("user0", n) for n in (70, 80, 90, 100)])
        await running.says("the message at sequence 5 is another one")
        assert read_rows(state) == expected(1, 5)


async def test_drift_of_a_durable_is_reported_and_left_alone(nats_server: NatsServer, tmp_path: Path) -> None:
    """A setting changed by hand shows in /health with both values; the worker works on and does not change it back."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]) as running:
        await stream_is_there(nc)
        await publish(nc, payloads(1, 1))
        await rows_become(state, expected(1, 1))
        await update_consumer(nc, ack_wait=7_000_000_000)
        await running.says("ack_wait: 7000000000 instead of 30000000000")
        assert running.consumer().status == "degraded"
        await publish(nc, payloads(1, 2)[1:])
        await rows_become(state, expected(1, 2))
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]) as running:
        await running.says("ack_wait: 7000000000 instead of 30000000000")
        assert (await info(nc))["config"]["ack_wait"] == 7_000_000_000


async def test_paused_durable_is_degraded_in_health(nats_server: NatsServer, tmp_path: Path) -> None:
    """A durable that somebody has paused shows in /health, and works on once it is resumed."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table()]) as running:
        await stream_is_there(nc)
        await publish(nc, payloads(1, 1))
        await rows_become(state, expected(1, 1))
        await api(nc, f"CONSUMER.PAUSE.{DURABLE}", {"pause_until": "2999-01-01T00:00:00Z"})
        await running.says("paused until 2999-01-01")
        assert running.consumer().status == "degraded"
        await publish(nc, payloads(1, 2)[1:])
        await api(nc, f"CONSUMER.PAUSE.{DURABLE}", {})
        await rows_become(state, expected(1, 2))
        await running.is_ok()


async def start_working(running: Running, nc: Client, state: Path) -> None:
    """Publishes a backlog and waits until the first of it is applied."""
    await stream_is_there(nc)
    await publish(nc, payloads(4, 100), at_once=400)
    await wait_until(lambda: len(read_rows(state)) == 4)


async def test_standby_takes_over_as_soon_as_the_owner_stops(nats_server: NatsServer, tmp_path: Path) -> None:
    """A second service on the same folder stands by, then goes on where the first ended."""
    state = tmp_path / "state"
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table(dawdle)]) as first:
        await start_working(first, nc, state)
        async with running_service(nats_server.url, state, [step_table(dawdle)]) as second:
            await second.is_ok()
            assert (first.consumer().role, second.consumer().role) == ("owner", "standby")
            assert second.consumer().processed == 0
            await first.stop()
            await publish(nc, [payload(f"user{user}", 100) for user in range(4)])
            await wait_until(lambda: second.consumer().role == "owner")
            await rows_become(state, expected(4, 101))
            await all_acked(nc)  # which follows the counting, as that follows the commit
            assert first.consumer().processed + second.consumer().processed == 4 * 101
