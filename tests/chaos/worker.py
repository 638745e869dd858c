"""One worker of the chaos test, in a process of its own: URL FOLDER."""

import asyncio
import logging
import sys
from pathlib import Path

from chaos.events import chaos_tables

from app.cli.session import new_event_loop
from app.logs import configure_logging
from streams.broker import Broker
from streams.service import ServiceConfig, StreamService
from streams.table_health import Limits


async def work(url: str, folder: Path) -> None:
    """Stands by or owns until it is killed."""
    config = ServiceConfig(
        state_dir=folder,
        durable_prefix="chaos",
        limits=Limits(max_deliver=5, parked_max=100_000),
        replicas=1,
        mode="external",
    )
    async with Broker([url], name="chaos") as broker:
        service = StreamService(config, chaos_tables(), broker, observe_commit=lambda _count, _seconds: None)
        await service.run(5)


if __name__ == "__main__":
    configure_logging("info", "json", sys.stderr)
    logging.getLogger("streams.outcomes").setLevel(logging.ERROR)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(work(sys.argv[1], Path(sys.argv[2])))
