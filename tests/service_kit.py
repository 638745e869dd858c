"""Builders for tests that run the streams side of the worker, in this process, against a real nats-server.

The events are steps: a user and a number. The handler appends the number to the user's row, so a row shows at once what
was applied, how often and in which order. What was sent is known to the test, and the stream is counted beside it.
"""

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import msgspec
import nats
from harness import wait_until
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from models.codec import aware
from state.sqlite import SqliteReader
from state.store import store_path
from state.tables import Table
from streams.access import Access
from streams.broker import Broker
from streams.context import Context
from streams.health import ConsumerHealth
from streams.policy import Policy
from streams.service import ServiceConfig, StreamService
from streams.subjects import SubjectTable
from streams.table_health import Limits

SUBJECT = "signals.step"
QUICK = Policy(backoff_s=(0.05,))


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int
    at: dt.datetime | None = attrs.field(default=None, validator=aware)


@attrs.frozen(kw_only=True)
class Trace:
    """What was applied for one user, in order."""

    seen: tuple[int, ...] = ()


Behaviour = Callable[[Step, Context], Awaitable[None]]


async def behave(event: Step, ctx: Context) -> None:
    """Succeeds at once."""


def step_table(
    behaviour: Behaviour = behave,
    *,
    name: str = "steps",
    subject: str = SUBJECT,
    policy: Policy = QUICK,
    concurrency: int = 100,
    ack_wait_s: float = 30,
) -> SubjectTable:
    """A subject table that records each step in its user's row, once ``behaviour`` has returned."""
    traces = Table(name, Trace)
    table = SubjectTable(name, tables=[traces], concurrency=concurrency, ack_wait_s=ack_wait_s)

    async def step(event: Step, ctx: Context) -> None:
        await behaviour(event, ctx)
        row = ctx.get(traces, event.user_id) or Trace()
        ctx.put(traces, event.user_id, Trace(seen=(*row.seen, event.n)))

    table.on(subject, policy=policy)(step)
    return table


class Running:
    """A service that runs, and how a test ends it."""

    def __init__(self, service: StreamService, broker: Broker, task: "asyncio.Task[None]") -> None:
        self.service = service
        self.broker = broker
        self.task = task

    async def stop(self) -> None:
        """Stops it in order and waits for its end."""
        self.service.stop()
        await self.task

    async def crash(self) -> None:
        """Drops it where it stands: nothing is drained, committed or acked."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def consumer(self, name: str = "steps") -> ConsumerHealth:
        """What /health shows of a durable."""
        return self.service.health().nats.consumers[f"test-{name}"]

    async def is_ok(self, timeout_s: float = 5) -> None:
        """Waits until /health says ok."""
        await wait_until(lambda: self.service.health().status == "ok", timeout_s, what=f"ok, got {self.reasons}")

    @property
    def reasons(self) -> str:
        """Why /health does not say ok, in one text."""
        return "; ".join(self.service.health().reasons)

    async def says(self, text: str, timeout_s: float = 5) -> None:
        """Waits until one of the reasons in /health holds ``text``."""
        await wait_until(lambda: text in self.reasons, timeout_s, what=f"health says {text!r}")


@contextlib.asynccontextmanager
async def running_service(
    url: str,
    state_dir: Path,
    tables: Sequence[SubjectTable],
    *,
    max_deliver: int = 5,
    access: Access | None = None,
    shutdown_s: float = 5,
) -> AsyncIterator[Running]:
    """Runs a service on ``url``; leaving stops it in order, unless the test has ended it already."""
    state_dir.mkdir(exist_ok=True)
    config = ServiceConfig(
        state_dir=state_dir,
        durable_prefix="test",
        limits=Limits(max_deliver=max_deliver, parked_max=100_000),
        replicas=1,
        mode="external",
    )
    async with Broker([url], name="test", access=access) as broker:
        service = StreamService(config, tables, broker, observe_commit=lambda count, seconds: None)
        running = Running(service, broker, asyncio.create_task(service.run(shutdown_s)))
        try:
            yield running
            if not running.task.done():
                await running.stop()
        finally:
            await running.crash()


@contextlib.asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Client]:
    """A plain nats-py connection of the test's own."""
    connection = await nats.connect(url, **options)
    try:
        yield connection
    finally:
        await connection.close()


async def stream_is_there(nc: Client, name: str = "SIGNALS") -> None:
    """Waits until a worker has created the stream."""

    async def is_there() -> bool:
        try:
            await nc.jetstream().stream_info(name)
        except NotFoundError:
            return False
        return True

    await wait_until(is_there, what=f"stream {name}")


async def publish(nc: Client, payloads: Iterable[bytes], *, subject: str = SUBJECT, at_once: int = 100) -> None:
    """Publishes in order, each confirmed by JetStream."""
    js = nc.jetstream()
    waiting = list(payloads)
    for start in range(0, len(waiting), at_once):
        await asyncio.gather(*(js.publish(subject, payload) for payload in waiting[start : start + at_once]))


def payload(user_id: str, n: int) -> bytes:
    """One step as JSON."""
    return msgspec.json.encode({"user_id": user_id, "n": n})


def payloads(user_count: int, each: int) -> list[bytes]:
    """Steps 0, 1, 2 … of several users, taken in turns."""
    return [payload(f"user{user}", n) for n in range(each) for user in range(user_count)]


def expected(user_count: int, each: int) -> dict[str, list[int]]:
    """The rows that ``payloads`` leads to when each step is applied once and in order."""
    return {f"user{user}": list(range(each)) for user in range(user_count)}


def read_rows(state_dir: Path, table: str = "steps") -> dict[str, list[int]]:
    """Reads what is committed: the steps applied, by user; empty before there is a store."""
    path = store_path(state_dir)
    if not path.exists():
        return {}
    reader = SqliteReader(path)
    try:
        return {row.key: list(row.row["seen"]) for row in reader.list_rows(table, limit=10_000)}  # type: ignore[call-overload]
    finally:
        reader.close()


async def rows_become(
    state_dir: Path, wanted: Mapping[str, Sequence[int]], *, table: str = "steps", timeout_s: float = 10
) -> None:
    """Waits until as many steps are applied as wanted, then compares: nothing lost, nothing twice, all in order."""
    total = sum(map(len, wanted.values()))
    await wait_until(
        lambda: sum(map(len, read_rows(state_dir, table).values())) >= total,
        timeout_s,
        what=f"{total} steps",
        poll_s=0.02,
    )
    assert read_rows(state_dir, table) == wanted


async def info(nc: Client, name: str = "steps", stream: str = "SIGNALS") -> dict[str, Any]:
    """Reads the durable's INFO through the raw API."""
    answer = await nc.request(f"$JS.API.CONSUMER.INFO.{stream}.test-{name}", b"", 2)
    return dict(msgspec.json.decode(answer.data))


async def api(nc: Client, subject: str, body: object = None) -> Any:
    """Asks JetStream's API."""
    request = b"" if body is None else msgspec.json.encode(body)
    return msgspec.json.decode((await nc.request(f"$JS.API.{subject}", request, 2)).data)


async def all_acked(nc: Client, name: str = "steps", stream: str = "SIGNALS") -> None:
    """Waits until the durable has delivered all that the stream has for it, and nothing is unacked.

    That nothing is pending does not tell: the server counts a message for its consumers a moment after its PubAck.
    """

    async def is_clean() -> bool:
        found = await info(nc, name, stream)
        if (found.get("num_pending"), found.get("num_ack_pending")) != (0, 0):
            return False
        subjects = found["config"].get("filter_subjects") or [found["config"].get("filter_subject", ">")]
        newest = [await api(nc, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}) for subject in subjects]
        last_seq = max(answer["message"]["seq"] if "message" in answer else 0 for answer in newest)
        return bool(found["delivered"]["stream_seq"] >= last_seq)

    await wait_until(is_clean, what="everything acked")


async def messages_of(nc: Client, stream: str, subject: str = ">") -> list[Any]:
    """Reads every message of a stream, or those on one subject, in order."""
    js = nc.jetstream()
    state = (await js.stream_info(stream)).state
    seqs = range(max(1, state.first_seq), state.last_seq + 1)
    found = [message for start in seqs[::200] for message in await _read(nc, stream, seqs, start)]
    return [message for message in found if subject in (">", message.subject)]


async def _read(nc: Client, stream: str, seqs: range, start: int) -> list[Any]:
    js = nc.jetstream()
    return await asyncio.gather(*(js.get_msg(stream, seq, direct=True) for seq in seqs if start <= seq < start + 200))


async def count_of(nc: Client, stream: str, subject: str) -> int:
    """Counts the messages on one subject."""
    found = await api(nc, f"STREAM.INFO.{stream}", {"subjects_filter": subject})
    return sum((found["state"].get("subjects") or {}).values())
