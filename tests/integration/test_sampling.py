"""The newest messages of a subject, read from a real server."""

from pathlib import Path

from harness import NatsServer, wait_until
from service_kit import api, client, publish

from streams.broker import Broker
from streams.sampling import newest_payloads


async def sample(server: NatsServer, subject: str, count: int) -> list[bytes]:
    """Reads the newest payloads over a connection of its own."""
    async with Broker([server.url], name="test") as broker:
        await broker.connected.wait()
        return await newest_payloads(broker, "SIGNALS", subject, count)


async def test_sample_has_the_newest_messages_of_the_subject_alone(nats_server: NatsServer) -> None:
    """Between many others, exactly the last ones are read, oldest first; and no consumer is left behind."""
    async with client(nats_server.url) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"])
        for n in range(20):
            await publish(nc, [b"%d" % n], subject="signals.a")
            await publish(nc, [b"x"] * (n % 4), subject="signals.b")
        assert await sample(nats_server, "signals.a", 3) == [b"17", b"18", b"19"]
        assert await sample(nats_server, "signals.a", 20) == [b"%d" % n for n in range(20)]
        assert len(await sample(nats_server, "signals.a", 100)) == 20

        async def is_tidy() -> bool:  # the server removes consumers a moment after it was told to
            return bool((await api(nc, "STREAM.INFO.SIGNALS"))["state"]["consumer_count"] == 0)

        await wait_until(is_tidy, what="no consumer is left")


async def test_sample_of_a_stream_whose_begin_is_gone(nats_server: NatsServer) -> None:
    """Sequences that retention or a purge has removed are none."""
    async with client(nats_server.url) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"])
        await publish(nc, [b"%d" % n for n in range(9)], subject="signals.a")
        await nc.jetstream().purge_stream("SIGNALS", seq=6)
        assert await sample(nats_server, "signals.a", 3) == [b"6", b"7", b"8"]
        await nc.jetstream().purge_stream("SIGNALS")
        assert await sample(nats_server, "signals.a", 3) == []


async def test_sample_of_nothing_is_empty(nats_server: NatsServer, tmp_path: Path) -> None:
    """Neither a missing stream nor an unused subject is an error."""
    assert await sample(nats_server, "signals.a", 3) == []
    async with client(nats_server.url) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"])
        assert await sample(nats_server, "signals.a", 3) == []
        await publish(nc, [b"1"], subject="signals.b")
        assert await sample(nats_server, "signals.a", 3) == []
        assert await sample(nats_server, "signals.b", 3) == [b"1"]
