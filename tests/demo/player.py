"""Plays the log: publishes every event in order, and waits until the stream has stored each.

A process of its own, as a publisher of another team would be: ``player.py WHEEL NATS_URL RESULT``. It knows nothing of
the worker. Events leave one after the other on one connection, so both subjects stay in the order of the log while
several wait for their acknowledgements; each carries a ``Nats-Msg-Id``. What it did is written to RESULT as JSON.
"""

import asyncio
import json
import signal
import sys
import time
from collections import deque
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import attrs
import nats
from demo.report import Played
from demo.rows import Event, add_broken, build_events, load_impressions
from nats.js import JetStreamContext
from nats.js.api import PubAck
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

IN_FLIGHT = 256
ACK_S = 10.0
LINE_EVERY = 1000


class Display:
    """How far it is: a bar on a terminal, elsewhere a line for every thousand."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        console = Console()
        columns = (TextColumn("  playing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self.bar.add_task("playing", total=total)
        self._is_plain = not console.is_terminal

    def advance(self) -> None:
        """Counts one stored message."""
        self._done += 1
        self.bar.advance(self._task)
        if self._is_plain and (self._done % LINE_EVERY == 0 or self._done == self._total):
            print(f"  played {self._done:,} of {self._total:,}", flush=True)


async def publish_all(stream: JetStreamContext, events: list[Event], display: Display) -> list[PubAck]:
    """Publishes in order with a bounded number in flight; every acknowledgement, in the same order.

    Raises:
        TimeoutError: one did not come; nothing is sent twice, for that would break the order.
    """
    flying: deque[asyncio.Future[PubAck]] = deque()
    acks = []

    async def take() -> None:
        async with asyncio.timeout(ACK_S):
            acks.append(await flying.popleft())
        display.advance()

    for event in events:
        if len(flying) == IN_FLIGHT:
            await take()
        headers = {"Nats-Msg-Id": event.message_id}
        flying.append(await stream.publish_async(event.subject, event.payload, headers=headers))
    while flying:
        await take()
    return acks


async def play(wheel: Path, url: str) -> Played:
    """Plays the log of ``wheel`` to the server at ``url``."""
    events = add_broken(build_events(load_impressions(wheel)))
    client = await nats.connect(url, name="obd-player", allow_reconnect=False)
    display = Display(len(events))
    try:
        with display.bar:
            started, clock = time.time(), time.perf_counter()
            acks = await publish_all(client.jetstream(), events, display)
            seconds = time.perf_counter() - clock
    finally:
        await client.close()
    seqs = [ack.seq for ack in acks]
    if seqs != list(range(seqs[0], seqs[0] + len(seqs))):
        raise RuntimeError("the stream did not store the events in the order of the log")
    return Played(
        count=len(acks),
        first_seq=seqs[0],
        last_seq=seqs[-1],
        duplicates=sum(bool(ack.duplicate) for ack in acks),
        started=started,
        seconds=seconds,
    )


async def play_until_stopped(wheel: Path, url: str) -> Played:
    """Plays the log; SIGTERM ends it in order, which gives the terminal its cursor back."""
    playing = asyncio.create_task(play(wheel, url))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    return await playing


if __name__ == "__main__":
    try:
        played = asyncio.run(play_until_stopped(Path(sys.argv[1]), sys.argv[2]))
    except asyncio.CancelledError:
        sys.exit(143)
    Path(sys.argv[3]).write_text(json.dumps(attrs.asdict(played)), encoding="utf-8")
