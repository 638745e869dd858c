"""Reading a stream as a looker-on: in order, whole, and without a trace on the server."""

import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import pytest
from harness import NatsServer, wait_until
from nats.aio.client import Client
from service_kit import api, client, publish

from models.errors import ApiError, BrokerUnavailable
from streams.broker import READ_BATCH_COUNT, Broker
from streams.reading import read_messages, seq_at


@pytest.fixture
async def nc(nats_server: NatsServer) -> AsyncIterator[Client]:
    """A client of the server, on which there is a stream S."""
    async with client(nats_server.url) as found:
        await found.jetstream().add_stream(name="S", subjects=["s.>"], allow_direct=True)
        yield found


@pytest.fixture
async def broker(nats_server: NatsServer, nc: Client) -> AsyncIterator[Broker]:
    """The connection that reads."""
    async with Broker([nats_server.url], name="reader") as found:
        await found.connected.wait()
        yield found


async def read(broker: Broker, *subjects: str, first: int = 1, last: int = 10**9, **options: Any) -> list[int]:
    """The sequences that are read."""
    return [one.seq async for one in read_messages(broker, "S", subjects, first, last, **options)]


async def no_consumer_is_left(nc: Client) -> None:
    """Waits until the reader's consumer is gone from the server."""

    async def is_gone() -> bool:
        return (await api(nc, "STREAM.INFO.S"))["state"]["consumer_count"] == 0

    await wait_until(is_gone, what="the reader's consumer is gone")


async def test_read_messages_gives_all_in_order(nc: Client, broker: Broker) -> None:
    """More messages than are asked for at once come in order, each once, and the consumer goes."""
    count = 2 * READ_BATCH_COUNT + 7
    await publish(nc, [b"%d" % n for n in range(count)], subject="s.a", at_once=500)
    messages = [one async for one in read_messages(broker, "S", (), 1, count)]
    assert [(one.seq, one.subject) for one in messages] == [(seq, "s.a") for seq in range(1, count + 1)]
    assert [one.payload for one in messages[:2]] == [b"0", b"1"]
    await no_consumer_is_left(nc)


async def test_read_messages_keeps_to_its_range_and_subjects(nc: Client, broker: Broker) -> None:
    """Both ends are included, other subjects are left out, and a hole is passed over."""
    for subject in ("s.a", "s.b", "s.c") * 3:
        await publish(nc, [b"{}"], subject=subject)
    await nc.jetstream().delete_msg("S", 4)
    assert await read(broker) == [1, 2, 3, 5, 6, 7, 8, 9]
    assert await read(broker, "s.a", "s.b", first=2, last=8) == [2, 5, 7, 8]
    assert await read(broker, first=0, last=2) == [1, 2]
    assert await read(broker, first=5, last=4) == await read(broker, first=99) == await read(broker, "s.z") == []


async def test_read_messages_takes_patterns_that_overlap(nc: Client, broker: Broker) -> None:
    """Two subject tables may listen to a subject and to a pattern that takes it; each message comes once."""
    for subject in ("s.a.x", "s.b.x", "s.a.y", "s.c"):
        await publish(nc, [b"{}"], subject=subject)
    assert await read(broker, "s.a.x", "s.>") == [1, 2, 3, 4]
    assert await read(broker, "s.a.*", "s.*.x") == [1, 2, 3]


async def test_read_messages_can_leave_payloads_out(nc: Client, broker: Broker) -> None:
    """With headers_only nothing of a payload comes over."""
    await publish(nc, [b"long" * 100], subject="s.a")
    [message] = [one async for one in read_messages(broker, "S", (), 1, 1, headers_only=True)]
    assert (message.seq, message.payload) == (1, b"")


async def test_read_messages_that_is_left_early_removes_its_consumer(nc: Client, broker: Broker) -> None:
    """A reader that has seen enough leaves nothing behind."""
    await publish(nc, [b"{}"] * 50, subject="s.a")
    reader = read_messages(broker, "S", (), 1, 50)
    assert (await anext(reader)).seq == 1
    await reader.aclose()
    await no_consumer_is_left(nc)


async def test_read_messages_says_that_the_stream_is_missing(broker: Broker) -> None:
    """A stream that is not there is the server's error."""
    with pytest.raises(ApiError, match="stream not found"):
        [one async for one in read_messages(broker, "NONE", (), 1, 1)]


async def test_read_messages_ends_when_the_stream_goes_meanwhile(nc: Client, broker: Broker) -> None:
    """A stream that is deleted under the reader is one error, not a wait for ever."""
    await publish(nc, [b"{}"] * (2 * READ_BATCH_COUNT), subject="s.a", at_once=500)
    reader = read_messages(broker, "S", (), 1, 10**9)
    assert (await anext(reader)).seq == 1
    await nc.jetstream().delete_stream("S")
    with pytest.raises(BrokerUnavailable, match="stream S could not be read"):
        [one async for one in reader]


async def test_seq_at_finds_the_first_message_from_an_instant_on(nc: Client, broker: Broker) -> None:
    """An instant before, at, between and after messages, in any zone and as far away as the calendar reaches."""
    for _ in range(3):
        await publish(nc, [b"{}"], subject="s.a")
    times = [(await nc.jetstream().get_msg("S", seq)).time for seq in (1, 2, 3)]
    assert all(times)
    second, third = times[1], times[2]
    assert second is not None and third is not None
    zone = dt.timezone(dt.timedelta(hours=5))
    assert await seq_at(broker, "S", second.astimezone(zone)) == 2
    assert await seq_at(broker, "S", third + dt.timedelta(microseconds=1)) is None
    for year, expected in ((1, 1), (1000, 1), (1969, 1), (2200, None), (2300, None), (9999, None)):
        assert await seq_at(broker, "S", dt.datetime(year, 1, 2, tzinfo=dt.UTC)) == expected, year
    await no_consumer_is_left(nc)


async def test_seq_at_of_an_empty_stream_is_none(broker: Broker) -> None:
    """Where there is no message, none was stored at any time."""
    assert await seq_at(broker, "S", dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) is None
