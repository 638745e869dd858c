"""Batches on a real server: whole where it takes them, one by one where it does not, and what is refused."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from decisions_kit import SUBJECT, is_stored, make_streams, stored
from harness import NatsServer, TcpProxy
from service_kit import api, client

from streams.batch_publisher import BatchPublisher, Published
from streams.broker import Broker
from streams.spool import Record


def batch(first: int, last: int, *, size: int = 10) -> list[Record]:
    """Decisions with these numbers, both ends included."""
    return [
        Record(id=f"id-{number}", subject=SUBJECT, payload=str(number).encode().ljust(size))
        for number in range(first, last + 1)
    ]


def ids(first: int, last: int) -> frozenset[str]:
    """The ids of decisions with these numbers."""
    return frozenset(record.id for record in batch(first, last))


def for_ever(waited_s: float) -> bool:
    """Waits for every answer."""
    return True


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[Broker]:
    """A broker of a server with the application's streams."""
    await make_streams(nats_server.url)
    async with Broker([nats_server.url], name="test") as made:
        await made.connected.wait()
        yield made


async def change_stream(url: str, **changes: object) -> None:
    """Changes the configuration of the stream, as an administrator does."""
    async with client(url) as nc:
        config = (await api(nc, "STREAM.INFO.DECISIONS"))["config"]
        assert "error" not in await api(nc, "STREAM.UPDATE.DECISIONS", config | changes)


async def test_batch_is_stored_whole_with_one_answer(broker: Broker, nats_server: NatsServer) -> None:
    """500 decisions are one batch: each message has its place in it."""
    publisher = BatchPublisher(broker)
    assert await publisher.publish(batch(1, 500), may_wait=for_ever) == Published(stored=ids(1, 500))
    message = await broker.message_at("DECISIONS", 500)
    assert message is not None
    assert message.headers["Nats-Batch-Sequence"] == "500" and message.headers["Nats-Msg-Id"] == "id-500"
    assert await stored(nats_server.url) == list(range(1, 501))
    await publisher.close()


async def test_batch_that_overlaps_an_earlier_one_adds_what_is_new(broker: Broker, nats_server: NatsServer) -> None:
    """A repeated batch, and one that has new decisions beside stored ones, leave each stored once."""
    publisher = BatchPublisher(broker)
    for last in (3, 3, 5):
        assert await publisher.publish(batch(1, last), may_wait=for_ever) == Published(stored=ids(1, last))
    assert await stored(nats_server.url) == [1, 2, 3, 4, 5]


async def test_stream_without_batches_gets_single_messages(broker: Broker, nats_server: NatsServer) -> None:
    """A stream that somebody has set otherwise is served all the same, in order; it is not asked again soon."""
    publisher = BatchPublisher(broker)
    for first, allow_atomic in ((1, False), (101, True)):
        await change_stream(nats_server.url, allow_atomic=allow_atomic)
        found = await publisher.publish(batch(first, first + 99), may_wait=for_ever)
        assert found == Published(stored=ids(first, first + 99))
    assert await stored(nats_server.url) == list(range(1, 201))
    message = await broker.message_at("DECISIONS", 200)
    assert message is not None and "Nats-Batch-Id" not in message.headers


async def test_older_server_gets_single_messages(nats_server: NatsServer) -> None:
    """A server that says that it is older than what we know of batches is not asked for any."""
    await make_streams(nats_server.url)
    async with (
        TcpProxy(nats_server.port, rewrite=(b'"version":"2.15.', b'"version":"2.11.')) as proxy,
        Broker([proxy.url], name="test") as broker,
    ):
        await broker.connected.wait()
        assert await BatchPublisher(broker).publish(batch(1, 9), may_wait=for_ever) == Published(stored=ids(1, 9))
        message = await broker.message_at("DECISIONS", 9)
        assert message is not None and "Nats-Batch-Id" not in message.headers


@pytest.mark.parametrize("allow_atomic", [True, False], ids=["batch", "singles"])
async def test_decision_that_the_stream_finds_too_large_is_told_apart(
    broker: Broker, nats_server: NatsServer, allow_atomic: bool
) -> None:
    """The one that is refused for its size is named, and the others are stored."""
    await change_stream(nats_server.url, max_msg_size=200, allow_atomic=allow_atomic)
    records = [*batch(1, 2), *batch(3, 3, size=300), *batch(4, 4)]
    found = await BatchPublisher(broker).publish(records, may_wait=for_ever)
    assert found == Published(stored=ids(1, 2) | ids(4, 4), too_large=ids(3, 3))
    assert await stored(nats_server.url) == [1, 2, 4]


async def test_decision_above_what_the_server_takes_is_never_sent(broker: Broker) -> None:
    """Such a message would end the connection."""
    [huge] = batch(1, 1, size=broker.max_payload_bytes - 500)
    publisher = BatchPublisher(broker)
    assert await publisher.publish([huge], may_wait=for_ever) == Published(too_large=ids(1, 1))
    assert await publisher.publish([huge, *batch(2, 2)], may_wait=for_ever) == Published(
        stored=ids(2, 2), too_large=ids(1, 1)
    )
    assert broker.is_connected


@pytest.mark.parametrize("count", [1, 3], ids=["one", "batch"])
async def test_refusal_of_another_kind_is_repeated_later(broker: Broker, nats_server: NatsServer, count: int) -> None:
    """A stream that takes nothing at all is an error of the stream, and no decision's."""
    await change_stream(nats_server.url, sealed=True)
    found = await BatchPublisher(broker).publish(batch(1, count), may_wait=for_ever)
    assert found.stored == found.too_large == frozenset()
    assert found.error is not None and "sealed" in found.error


async def test_answers_that_do_not_come_are_given_up_when_told(nats_server: NatsServer) -> None:
    """The wait ends when the caller says so, or at once when there is no connection."""
    await make_streams(nats_server.url)
    async with Broker([nats_server.url], name="test") as broker:
        publisher = BatchPublisher(broker)
        found = await publisher.publish(batch(1, 2), may_wait=for_ever)
        assert found == Published(error="can't subscribe (not connected)")
        await broker.connected.wait()
        await publisher.publish(batch(1, 2), may_wait=for_ever)
        nats_server.pause()
        for last in (3, 4):
            found = await publisher.publish(batch(3, last), may_wait=lambda waited_s: waited_s < 0.1)
            assert found == Published(error="no answer in time")
        nats_server.resume()
        nats_server.kill9()
        found = await publisher.publish(batch(5, 6), may_wait=for_ever)
        assert found.error in ("no answer in time", "not connected")
        await publisher.close()


async def test_answer_is_not_waited_for_on_another_connection(nats_server: NatsServer) -> None:
    """An answer that did not come before the connection was lost comes no more, however soon there is another one."""
    await make_streams(nats_server.url)
    async with (
        TcpProxy(nats_server.port, rewrite=(b"MSG _INBOX.", b"MSG _LOST_.")) as proxy,
        Broker([proxy.url], name="test") as broker,
    ):
        await broker.connected.wait()
        publisher = BatchPublisher(broker)
        for _ in range(5):
            publishing = asyncio.create_task(publisher.publish(batch(1, 2), may_wait=for_ever))
            await is_stored(nats_server.url, 2)
            proxy.cut()
            found = await asyncio.wait_for(publishing, 10)
            assert found.error in ("no answer in time", "not connected")
            await broker.connected.wait()


@pytest.mark.parametrize("count", [1, 2], ids=["one", "batch"])
async def test_answer_of_somebody_else_stores_nothing(nats_server: NatsServer, count: int) -> None:
    """A client that answers on the subject is not taken for the stream."""
    async with client(nats_server.url) as nc, Broker([nats_server.url], name="test") as broker:

        async def answer(message: object) -> None:
            if message.reply:  # type: ignore[attr-defined]
                await message.respond(b"hello")  # type: ignore[attr-defined]

        await nc.subscribe(SUBJECT, cb=answer)
        await nc.flush()
        await broker.connected.wait()
        found = await BatchPublisher(broker).publish(batch(1, count), may_wait=for_ever)
        assert found.error is not None and "somebody else answers there" in found.error
        assert not found.settled
