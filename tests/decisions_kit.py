"""Builders for tests of the decision log against a real nats-server."""

import contextlib
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from harness import wait_until
from service_kit import client, messages_of

from streams.broker import Broker
from streams.decision_log import DecisionLimits, DecisionLog
from streams.provision import ensure_streams
from streams.topology import STREAMS

SUBJECT = "decisions.score"


async def make_streams(url: str) -> None:
    """Creates the application's streams, as a worker does."""
    async with Broker([url], name="test") as broker:
        await broker.connected.wait()
        await ensure_streams(broker, STREAMS, replicas=1, known=())


@contextlib.asynccontextmanager
async def logging_to(url: str, folder: Path, *, limits: DecisionLimits | None = None) -> AsyncIterator[DecisionLog]:
    """A decision log that publishes to ``url``; leaving stops it in order."""
    decisions = DecisionLog(folder, limits=limits)
    async with Broker([url], name="test") as broker, decisions.publishing(broker):
        yield decisions


def write(decisions: DecisionLog, first: int, last: int, *, size: int = 10) -> None:
    """Writes decisions with these numbers, both ends included; each must be taken."""
    for number in range(first, last + 1):
        assert decisions.write(SUBJECT, str(number).encode().ljust(size))


def losses(decisions: DecisionLog) -> dict[str, int]:
    """The reasons for which decisions were lost, with their counts."""
    return {reason: count for reason, count in decisions.facts().dropped.items() if count}


async def is_empty(decisions: DecisionLog) -> None:
    """Waits until nothing waits in memory or on disk."""
    await wait_until(
        lambda: decisions.facts().buffered + decisions.facts().spooled == 0, 20, what="every decision is stored"
    )


async def stored(url: str) -> list[int]:
    """The numbers of the decisions in the stream, in its order."""
    async with client(url) as nc:
        return [int(message.data) for message in await messages_of(nc, "DECISIONS")]


async def is_stored(url: str, count: int) -> None:
    """Waits until the stream has got this many messages."""
    async with client(url) as nc:

        async def has_them() -> bool:
            return bool((await nc.jetstream().stream_info("DECISIONS")).state.messages >= count)

        await wait_until(has_them, what=f"{count} messages in the stream")


@contextlib.contextmanager
def no_file_grows() -> Iterator[None]:
    """Has the system refuse every write of this process to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
