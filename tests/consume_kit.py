"""Fakes of what the modules of ``streams`` ask of each other, and builders of their records."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs
import msgspec
from streams_kit import DURABLE, make_message, make_scope

from models.errors import ApiError
from state.tables import Table
from streams.broker import MESSAGE_NOT_FOUND, Inbox, PubAck
from streams.context import Context
from streams.deliveries import PullStatus, StoredMessage
from streams.message import Message
from streams.policy import Policy
from streams.runner import Item, Runner
from streams.subjects import SubjectTable
from streams.topology import ConsumerSpec

SPEC = ConsumerSpec(durable=DURABLE, table="steps", stream="SIGNALS", subjects=("signals.step",), ack_wait_s=30)


class FakeInbox(Inbox):
    """An inbox through which a test plays the server."""

    def __init__(self, subject: str, on_message: Callable[[Message], None], on_status: Callable[[PullStatus], None]):
        self.subject = subject
        self._on_message = on_message
        self._on_status = on_status
        self.is_closed = False
        self.on_close: Callable[[], None] | None = None
        self.is_drained = False

    def deliver(self, seq: int, consumer_seq: int) -> None:
        self._on_message(make_message(seq, consumer_seq=consumer_seq))

    def status(self, code: int, pending: int = 0) -> None:
        self._on_status(PullStatus(code=code, description="said so", pending_messages=pending))

    async def close(self) -> None:
        self.is_closed = True
        if self.on_close:
            self.on_close()

    async def drain(self) -> None:
        self.is_drained = True


Answer = object | Exception | Callable[[Any], Any]


class FakeBroker:
    """Answers API requests from a dict, and notes everything that it is asked for, in order.

    Args:
        answers: by API subject: what to answer; an exception is raised; a coroutine function is called with the body.
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        self.answers: dict[str, Answer] = dict(answers or {})
        self.log: list[tuple[Any, ...]] = []
        self.inboxes: list[FakeInbox] = []
        self.listeners: list[Callable[[], None]] = []
        self.connected = asyncio.Event()
        self.connected.set()
        self.server_version = (2, 15, 1)
        self.max_payload_bytes = 1024 * 1024
        self.takes_sends = True
        self.stored: dict[int, StoredMessage] = {}
        self.last: StoredMessage | None = None
        self.publish_answer: Callable[[str, dict[str, str]], Awaitable[PubAck]] = _stored

    def on_reconnect(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    async def api(self, subject: str, body: object = None, *, timeout_s: float = 5) -> Any:
        self.log.append((subject, body))
        answer = self.answers.get(subject, {})
        if isinstance(answer, Exception):
            raise answer
        return await answer(body) if callable(answer) else answer

    async def message_at(self, stream: str, seq: int) -> StoredMessage | None:
        return self.stored.get(seq)

    async def last_message(self, stream: str, subject: str) -> StoredMessage:
        if self.last is None:
            raise ApiError("STREAM.MSG.GET", MESSAGE_NOT_FOUND, "no message found")
        return self.last

    def new_inbox(self) -> str:
        return f"inbox{len(self.inboxes)}"

    async def subscribe_deliveries(
        self, subject: str, on_message: Callable[[Message], None], on_status: Callable[[PullStatus], None]
    ) -> Inbox:
        self.inboxes.append(FakeInbox(subject, on_message, on_status))
        self.log.append(("subscribe",))
        return self.inboxes[-1]

    async def send(self, subject: str, payload: bytes = b"", *, reply: str = "") -> bool:
        if self.takes_sends:
            self.log.append(("pull", msgspec.json.decode(payload)["batch"], reply))
        return self.takes_sends

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str], *, timeout_s: float = 5) -> PubAck:
        self.log.append(("publish", subject, payload, headers))
        return await self.publish_answer(subject, headers)

    def pulls(self) -> list[int]:
        """The batches that were asked for."""
        return [entry[1] for entry in self.log if entry[0] == "pull"]

    def requests(self, prefix: str) -> list[Any]:
        """The bodies of the API requests whose subject starts like ``prefix``."""
        return [body for subject, *rest in self.log if subject.startswith(prefix) for body in rest[:1]]


async def _stored(subject: str, headers: dict[str, str]) -> PubAck:
    return PubAck(stream="SIGNALS", seq=1, is_duplicate=False)


@attrs.frozen(kw_only=True)
class Step:
    user_id: str
    n: int = 0


@attrs.frozen(kw_only=True)
class Note:
    text: str = ""


NOTES = Table("notes", Note)


def steps(
    function: Callable[[Step, Context], Awaitable[None]], policy: Policy | None = None, **options: Any
) -> SubjectTable:
    """A subject table of one handler, named ``steps.step``."""
    table = SubjectTable("steps", tables=[NOTES], **options)

    async def step(event: Step, ctx: Context) -> None:
        await function(event, ctx)

    table.on("signals.step", policy=policy)(step)
    return table


def runner_of(table: SubjectTable, max_deliver: int = 5) -> Runner:
    """The runner of a table."""
    scope = make_scope(table.tables)
    return Runner(table, scope, max_deliver=max_deliver, rng=random.Random(1))


def item_of(runner: Runner, seq: int = 1, payload: bytes = b'{"user_id": "u"}') -> Item:
    """A delivered message, decoded."""
    handler = runner.handler_for("signals.step")
    assert handler is not None
    return runner.prepare(make_message(seq, payload, subject="signals.step"), handler)


async def ended(tasks: "Sequence[asyncio.Task[Any]]") -> list[Any]:
    """Cancels tasks and waits for their ends, at most a second."""
    for task in tasks:
        task.cancel()
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)
