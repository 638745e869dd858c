"""Handles events until one says "end", then prints p50 and p99 of the others' latency in ms: URL FOLDER.

Latency is the time from the publisher's clock to the handler's start, of events of kind "ok"; both run on one machine.
"""

import asyncio
import statistics
import sys
import time
from pathlib import Path

import attrs

from app.cli.session import new_event_loop
from streams import Context, Policy, SubjectTable
from streams.broker import Broker
from streams.service import ServiceConfig, StreamService
from streams.table_health import Limits

SLOW_S = 2.0


@attrs.frozen(kw_only=True)
class Event:
    """An event with the time at which it was sent; ``kind`` says what its handler does."""

    user_id: str
    kind: str
    sent: float


def table_for(latencies: list[float], ended: asyncio.Event) -> SubjectTable:
    """Handlers that note latencies, sleep or fail."""
    table = SubjectTable("bench")

    @table.on("signals.bench", policy=Policy(max_deliver=1000, backoff_s=(0.5,)))
    async def handle(event: Event, ctx: Context) -> None:
        if event.kind == "ok":
            latencies.append(time.time() - event.sent)
        elif event.kind == "slow":
            await asyncio.sleep(SLOW_S)
        elif event.kind == "bad":
            raise ValueError("fails")
        else:
            ended.set()

    return table


async def consume(url: str, folder: Path) -> list[float]:
    """Runs the service until the event that ends it; the latencies in seconds."""
    config = ServiceConfig(
        state_dir=folder,
        durable_prefix=folder.name,
        limits=Limits(max_deliver=5, parked_max=100_000),
        replicas=1,
        mode="external",
    )
    latencies: list[float] = []
    ended = asyncio.Event()
    async with Broker([url], name="bench") as broker:
        service = StreamService(
            config, [table_for(latencies, ended)], broker, observe_commit=lambda _count, _seconds: None
        )
        task = asyncio.create_task(service.run(1))
        while service.health().nats.consumers[f"{folder.name}-bench"].status != "ok":
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await ended.wait()
        service.stop()
        await task
    return latencies


def main() -> None:
    """Prints the percentiles."""
    url, folder = sys.argv[1:]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        latencies = runner.run(consume(url, Path(folder)))
    cuts = statistics.quantiles(latencies, n=100)
    print(cuts[49] * 1000, cuts[98] * 1000)


main()
