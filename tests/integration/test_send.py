"""The order in which ``send`` stores lines, through a server that dies."""

import asyncio
from pathlib import Path

import nats
from harness import NatsServer, wait_until
from service_kit import client, messages_of

from app.cli.send import _publish_all
from streams.broker import Broker


async def test_lines_keep_their_order_through_killed_servers(nats_server: NatsServer, tmp_path: Path) -> None:
    """However often the server dies, each line is stored once, in the order of the file."""
    lines = [b"%d" % number for number in range(6000)]
    async with client(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"], allow_direct=True)
        async with Broker([nats_server.url], name="test") as broker:
            await broker.connected.wait()
            sending = asyncio.create_task(_publish_all(broker, "signals.line", lines, handler=None))

            async def stored_count() -> int:
                try:
                    return int((await nc.jetstream(timeout=1).stream_info("SIGNALS")).state.messages)
                except (nats.errors.Error, TimeoutError):  # not back yet
                    return 0

            for limit in (500, 2500):

                async def is_reached(limit: int = limit) -> bool:
                    return await stored_count() > limit

                await wait_until(is_reached, what=f"{limit} lines stored", poll_s=0.001)
                nats_server.kill9()
                nats_server.start()
            tally = await asyncio.wait_for(sending, 40)
        assert (tally.sent, tally.refused) == (6000, [])
        assert [message.data for message in await messages_of(nc, "SIGNALS")] == lines


async def test_large_and_small_lines_keep_their_order_while_the_server_is_away(nats_server: NatsServer) -> None:
    """Large lines, of which only so many wait for a connection, are not overtaken by the small ones among them."""
    lines = [line for n in range(100) for line in (b"%d " % n + b"x" * 100_000, b"%d" % n)]
    async with client(nats_server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"], allow_direct=True)
        async with Broker([nats_server.url], name="test") as broker:
            await broker.connected.wait()
            nats_server.kill9()
            await wait_until(lambda: not broker.connected.is_set())
            sending = asyncio.create_task(_publish_all(broker, "signals.line", lines, handler=None))
            await asyncio.sleep(0)
            nats_server.start()
            tally = await asyncio.wait_for(sending, 40)
        assert (tally.sent, tally.refused) == (200, [])
        assert [message.data for message in await messages_of(nc, "SIGNALS")] == lines
