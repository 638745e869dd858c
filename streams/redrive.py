"""Dead letters that get another try, or are let go for good, as a person asks.

The request is a message on ``deadletters.redrive.<table>.<function>``, which only the owner of that handler reads, from
a durable of its own. A redriven message runs in its lane and commits under its original sequence, which turns dead into
applied in one transaction; if it fails, it stays dead. So a request may come twice: the second one finds nothing dead.
A request is over when its message has an outcome, or waits in a parked lane; one whose message was dropped before that,
by a new attach or a failing store, is carried out again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Literal

import attrs

from models.codec import decoder_for
from models.errors import ApiError, BrokerUnavailable, PayloadError, StoreError
from state.store import DeadLetter, Floor, Store
from streams.broker import MESSAGE_NOT_FOUND, STREAM_NOT_FOUND, Broker
from streams.changes import DEAD_LETTER_HEADER, instant
from streams.commit import Committer
from streams.consumer import Attached, Consumer
from streams.deliveries import StoredMessage
from streams.message import Message
from streams.subjects import Handler, SubjectTable
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, ConsumerSpec
from streams.worker import TableWorker

log = logging.getLogger(__name__)

REDRIVE_PREFIX = f"{DEAD_LETTER_PREFIX}redrive."
QUEUE_COUNT = 1000
RETRY_S = 0.5
ACK_WAIT_S = 30.0
SEQ_LIMIT = 2**63


def _is_sequence(instance: object, attribute: "attrs.Attribute[int]", value: int) -> None:
    """Validator: a number that the store can hold."""
    if not 0 < value < SEQ_LIMIT:
        raise ValueError(f"{attribute.name}: expected a sequence of a stream")


@attrs.frozen(kw_only=True)
class Request:
    """What a person asks for: another run of one dead letter's message, or that it be dropped, with the reason."""

    action: Literal["redrive", "drop"]
    stream: str
    seq: int = attrs.field(validator=_is_sequence)
    reason: str = ""


_decode = decoder_for(Request)


def redrive_spec(spec: ConsumerSpec) -> ConsumerSpec:
    """The durable of the requests for one subject table."""
    return ConsumerSpec(
        durable=f"{spec.durable}-redrive",
        table=spec.table,
        stream=DEAD_LETTERS,
        subjects=(f"{REDRIVE_PREFIX}{spec.table}.*",),
        ack_wait_s=ACK_WAIT_S,
        former=tuple(f"{former}-redrive" for former in spec.former),
        start="new",
    )


def names_of(table: SubjectTable, handler: Handler) -> tuple[str, ...]:
    """Every name that a handler's dead letters may bear: today's, and with its own or its table's former name."""
    tables = [table.name] + ([table.renamed_from] if table.renamed_from else [])
    names = [handler.name] + ([handler.former] if handler.former else [])
    return tuple(f"{prefix}.{name.partition('.')[2]}" for prefix in tables for name in names)


class Redriver:
    """Carries out the requests for one subject table, one after the other, in the process that owns the store.

    Args:
        retry_s: seconds between two tries of what can't be done now.
    """

    def __init__(
        self,
        worker: TableWorker,
        broker: Broker,
        *,
        store: Store,
        committer: Committer,
        store_id: str,
        retry_s: float = RETRY_S,
    ) -> None:
        self._worker, self._broker, self._store, self._committer = worker, broker, store, committer
        self._retry_s = retry_s
        self.spec = redrive_spec(worker.spec)
        self.lost: str | None = None
        self._floor = store.load(self.spec.durable).floor
        self._queue: asyncio.Queue[Message] = asyncio.Queue(QUEUE_COUNT)
        self.consumer = Consumer(broker, self.spec, store_id=store_id, sink=self, log_level=logging.DEBUG)

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.consumer.run(), name=self.spec.durable)
            group.create_task(self._serve(), name=f"{self.spec.durable}-serve")

    @property
    def trouble(self) -> str | None:
        """Why requests are not taken, if they are not."""
        return self.consumer.reason if self.consumer.is_refused else self.consumer.detached_reason

    # What the consumer asks of its sink.

    @property
    def floor(self) -> Floor | None:
        """The committed floor."""
        return self._floor

    async def attached(self, found: Attached) -> bool:
        """Drops what waits; it comes again."""
        if self._floor is None:
            first = found.floor
            if not await self._committer.note(lambda: self._store.set_floor(first)):
                return False
            self._floor = first
        while not self._queue.empty():
            self._queue.get_nowait()
        return True

    def deliver(self, message: Message) -> None:
        """Queues a request."""
        self._queue.put_nowait(message)

    def room(self) -> int:
        """How many requests may wait here."""
        return QUEUE_COUNT - self._queue.qsize()

    async def _serve(self) -> None:
        while True:
            message = await self._queue.get()
            assert self._floor is not None, "an attach comes before any delivery"
            if message.seq > self._floor.seq:
                await self._carry_out(message)
                await self._note(message)
            await self._broker.ack([message.reply] if message.reply else [])
            await self.consumer.top_up()

    async def _note(self, message: Message) -> None:
        """Writes down that a request is done; the same one changes nothing until that is written."""
        assert self._floor is not None, "an attach comes before any delivery"
        floor = attrs.evolve(self._floor, seq=message.seq, ts=message.ts)
        while not await self._committer.note(lambda: self._store.set_floor(floor)):
            await asyncio.sleep(self._retry_s)
        self._floor = floor

    async def _carry_out(self, message: Message) -> None:
        name = message.subject.removeprefix(REDRIVE_PREFIX)
        try:
            request = _decode(message.payload)
            await self._answer(request, name)
        except PayloadError as error:
            log.error("redrive refused", extra={"fields": {"handler": name, "why": str(error)}})
        else:
            fields = {"handler": name, "seq": request.seq, "action": request.action}
            log.info("redrive request done", extra={"fields": fields})

    async def _answer(self, request: Request, name: str) -> None:
        """Does what is asked for, however long the store or NATS is away.

        Raises:
            PayloadError: it can't be done.
        """
        told, is_done = "", False
        while not is_done:
            why = "it can't run now, or was dropped before its outcome was committed"
            try:
                is_done = await (self._redrive if request.action == "redrive" else self._drop)(request, name)
            except (BrokerUnavailable, ApiError, StoreError) as error:
                why = str(error)
            if not is_done:
                if why != told:
                    log.warning("redrive waits", extra={"fields": {"handler": name, "seq": request.seq, "why": why}})
                told = why
                await asyncio.sleep(self._retry_s)

    async def _drop(self, request: Request, name: str) -> bool:
        self._find_dead(request, name)
        durable = self._worker.spec.durable
        return await self._committer.note(lambda: self._store.drop_dead(durable, request.seq, request.reason))

    def _find_dead(self, request: Request, name: str) -> DeadLetter:
        """What the store knows of the message.

        Raises:
            PayloadError: it is not dead, or another handler's, or waits for its turn already.
        """
        where, table = f"{request.stream}:{request.seq}", self._worker.table
        dead = self._store.fetch_dead(self._worker.spec.durable, request.seq)
        if dead is None or request.stream != self._worker.spec.stream:
            raise PayloadError(f"{where} is no dead letter of this store")
        handler = next((handler for handler in table.handlers if handler.name == name), None)
        if handler is None or dead.handler not in names_of(table, handler):
            raise PayloadError(f"{where} is a dead letter of {dead.handler}")
        if dead.state != "dead":
            raise PayloadError(f"{where} is {dead.state} already")
        if dead.is_waiting:
            raise PayloadError(f"{where} waits for its turn already")
        return dead

    async def _redrive(self, request: Request, name: str) -> bool:
        """Runs the message; False when it can't be taken now, or was dropped without an outcome."""
        message = await self._original(request, self._find_dead(request, name))
        handler = self._worker.table.handler_for(message.subject)
        if handler is not None and handler.name != name:
            raise PayloadError(f"{request.stream}:{request.seq}: {message.subject!r} is now handled by {handler.name}")
        dead = self._find_dead(request, name)  # again: it may have come out of its parked lane meanwhile
        item = self._worker.redrive(message)
        if item is None:
            return False
        await self._worker.gone(item)
        now = self._store.fetch_dead(self._worker.spec.durable, request.seq)
        return now is None or now.is_waiting or (now.state, now.redrives) != (dead.state, dead.redrives)

    async def _original(self, request: Request, dead: DeadLetter) -> Message:
        """The message as it was: from its stream, or from its dead letter if the stream no longer has it.

        Raises:
            PayloadError: neither has it.
        """
        where = f"{request.stream}:{request.seq}"
        stored = await _found(self._broker.message_at(request.stream, request.seq))
        if stored is not None and stored.ts == dead.ts:
            return Message(request.stream, stored.subject, stored.payload, None, request.seq, 0, dead.ts)
        subject = f"{DEAD_LETTER_PREFIX}{request.stream}.{dead.handler}.{request.seq}"
        letter = await _found(self._broker.last_message(DEAD_LETTERS, subject))
        if letter is None or not is_letter_of(letter.headers, dead):
            raise PayloadError(f"{where}: neither message nor letter is there")
        if DEAD_LETTER_HEADER + "Pointer" in letter.headers:
            raise PayloadError(f"{where}: its letter points to a message that is gone")
        original = unescaped(letter.headers.get(DEAD_LETTER_HEADER + "Subject", ""))
        return Message(request.stream, original, letter.payload, None, request.seq, 0, dead.ts)


async def _found(reading: Awaitable[StoredMessage | None]) -> StoredMessage | None:
    """What JetStream has, or None when the message, or its stream, is not there."""
    try:
        return await reading
    except ApiError as error:
        if error.code in (MESSAGE_NOT_FOUND, STREAM_NOT_FOUND):
            return None
        raise


def is_letter_of(headers: Mapping[str, str], dead: DeadLetter) -> bool:
    """Whether a letter is of this message, not of another one that had its sequence before the stream was made anew."""
    return headers.get(DEAD_LETTER_HEADER + "Time") == instant(dead.ts / 1e9)


def unescaped(text: str) -> str:
    """What a letter's header says, of which escapes were made; where it was cut, half an escape may be left."""
    return text.encode("ascii", "replace").decode("unicode_escape", "replace")
