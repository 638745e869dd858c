"""Consumes COUNT messages with FastStream's durable pull subscriber and prints messages per second: URL COUNT NAME."""

import asyncio
import sys
import time

from faststream import FastStream
from faststream.nats import JStream, NatsBroker, PullSub
from pydantic import BaseModel

BATCH_SIZE = 100  # the best of 10, 50, 100, 200, 500 on a machine of two cores


class Sync(BaseModel):
    """The event of the benchmark."""

    user_id: str
    provider: str
    task_count: int


async def consume(url: str, count: int, name: str, batch_size: int) -> float:
    """Runs FastStream until COUNT messages are handled and acked; seconds from the first one on."""
    broker = NatsBroker(url, logger=None)
    app = FastStream(broker, logger=None)
    done = asyncio.Event()
    seen, started = 0, 0.0

    @broker.subscriber(
        "signals.bench",
        stream=JStream("SIGNALS", declare=False),
        durable=name,
        pull_sub=PullSub(batch_size=batch_size, timeout=1),
    )
    async def plain(event: Sync) -> None:
        nonlocal seen, started
        started = started or time.perf_counter()
        seen += 1
        if seen == count:
            done.set()

    await app.start()
    await done.wait()
    seconds = time.perf_counter() - started
    await app.stop()
    return count / seconds


def main() -> None:
    """Prints the rate."""
    import uvloop

    url, count, name = sys.argv[1:4]
    batch_size = int(sys.argv[4]) if len(sys.argv) > 4 else BATCH_SIZE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(consume(url, int(count), name, batch_size)))


main()
