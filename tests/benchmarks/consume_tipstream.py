"""Consumes COUNT messages with this application and prints messages per second: URL COUNT MODE FOLDER."""

import asyncio
import sys
import time
from pathlib import Path

import attrs

from app.cli.session import new_event_loop
from state.tables import Table
from streams import Context, SubjectTable
from streams.broker import Broker
from streams.service import ServiceConfig, StreamService
from streams.table_health import Limits


@attrs.frozen(kw_only=True)
class Sync:
    """The event of the benchmark."""

    user_id: str
    provider: str
    task_count: int


@attrs.frozen(kw_only=True)
class Last:
    """The row of the benchmark."""

    provider: str
    task_count: int


LAST = Table("last", Last)


def table_for(mode: str) -> SubjectTable:
    """A subject table whose handler writes a row a message (``write``), or nothing (``plain``, ``none``: no order)."""
    table = SubjectTable("bench", order="none") if mode == "none" else SubjectTable("bench", tables=[LAST])
    if mode == "write":

        @table.on("signals.bench")
        async def write(event: Sync, ctx: Context) -> None:
            ctx.put(LAST, event.user_id, Last(provider=event.provider, task_count=event.task_count))

    else:

        @table.on("signals.bench")
        async def plain(event: Sync, ctx: Context) -> None:
            pass

    return table


async def consume(url: str, count: int, mode: str, folder: Path) -> float:
    """Runs the service until COUNT messages are applied and acked; seconds from its first message on."""
    config = ServiceConfig(
        state_dir=folder,
        durable_prefix=folder.name,
        limits=Limits(max_deliver=5, parked_max=1000),
        replicas=1,
        mode="external",
    )
    async with Broker([url], name="bench") as broker:
        service = StreamService(config, [table_for(mode)], broker, observe_commit=lambda _count, _seconds: None)
        task = asyncio.create_task(service.run(10))
        started = 0.0
        while (done := service.health().nats.consumers[f"{folder.name}-bench"].processed) < count:
            if done and not started:
                started, first = time.perf_counter(), done
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - started
        service.stop()
        await task
    return (count - first) / seconds


def main() -> None:
    """Prints the rate."""
    url, count, mode, folder = sys.argv[1:]
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        print(runner.run(consume(url, int(count), mode, Path(folder))))


main()
