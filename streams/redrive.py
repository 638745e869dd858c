"""Dead letters that get another try, or are let go for good, as a person asks.

The request is a message on ``deadletters.redrive.<table>.<function>``, which only the owner of that handler reads, from
a durable of its own. A redriven message runs in its lane and commits under its original sequence, which turns dead into
applied in one transaction; if it fails, it stays dead. So a request may come twice: the second one finds nothing dead.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Literal

import attrs

from models.codec import decoder_for
from models.errors import ApiError, BrokerUnavailable, PayloadError, StoreError
from state.store import DeadLetter, Floor, Store
from streams.broker import Broker
from streams.commit import Committer
from streams.consumer import Attached, Consumer
from streams.message import Message
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, ConsumerSpec
from streams.worker import TableWorker

log = logging.getLogger(__name__)

REDRIVE_PREFIX = f"{DEAD_LETTER_PREFIX}redrive."
HEADER = "Tipstream-"
QUEUE_COUNT = 1000
RETRY_S = 0.5
ACK_WAIT_S = 30.0


@attrs.frozen(kw_only=True)
class Request:
    """What a person asks for: another run of one dead letter's message, or that it be dropped, with the reason."""

    action: Literal["redrive", "drop"]
    stream: str
    seq: int
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


class Redriver:
    """Carries out the requests for one subject table, one after the other, in the process that owns the store."""

    def __init__(self, worker: TableWorker, broker: Broker, store: Store, committer: Committer, store_id: str) -> None:
        self._worker, self._broker, self._store, self._committer = worker, broker, store, committer
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
            await asyncio.sleep(RETRY_S)
        self._floor = floor

    async def _carry_out(self, message: Message) -> None:
        handler = message.subject.removeprefix(REDRIVE_PREFIX)
        try:
            request = _decode(message.payload)
            await self._answer(request, handler)
        except PayloadError as error:
            log.error("redrive refused", extra={"fields": {"handler": handler, "why": str(error)}})

    async def _answer(self, request: Request, handler: str) -> None:
        """Does what is asked for, however long the store or NATS is away.

        Raises:
            PayloadError: it can't be done.
        """
        while True:
            try:
                dead = self._find_dead(request)
                if request.action == "redrive":
                    await self._redrive(request, dead)
                elif not await self._committer.note(lambda: self._drop(request)):
                    raise BrokerUnavailable("the store takes no writes")
            except (BrokerUnavailable, StoreError) as error:
                log.warning("redrive waits", extra={"fields": {"handler": handler, "why": str(error)}})
                await asyncio.sleep(RETRY_S)
            else:
                fields = {"handler": handler, "seq": request.seq, "action": request.action}
                log.info("redrive request done", extra={"fields": fields})
                return

    def _drop(self, request: Request) -> None:
        self._store.drop_dead(self._worker.spec.durable, request.seq, request.reason)

    def _find_dead(self, request: Request) -> DeadLetter:
        dead = self._store.fetch_dead(self._worker.spec.durable, request.seq)
        if dead is None or request.stream != self._worker.spec.stream:
            raise PayloadError(f"{request.stream}:{request.seq} is no dead letter of this store")
        if dead.state != "dead":
            raise PayloadError(f"{request.stream}:{request.seq} is {dead.state} already")
        return dead

    async def _redrive(self, request: Request, dead: DeadLetter) -> None:
        message = await self._original(request, dead)
        item = self._worker.redrive(message)
        while item is None:
            await asyncio.sleep(RETRY_S / 10)
            item = self._worker.redrive(message)
        await self._worker.gone(item)

    async def _original(self, request: Request, dead: DeadLetter) -> Message:
        """The message as it was: from its stream, or from its dead letter if the stream no longer has it.

        Raises:
            PayloadError: neither has it.
        """
        stored = await self._broker.message_at(request.stream, request.seq)
        if stored is not None and stored.ts == dead.ts:
            return Message(request.stream, stored.subject, stored.payload, None, request.seq, 0, dead.ts)
        subject = f"{DEAD_LETTER_PREFIX}{request.stream}.{dead.handler}.{request.seq}"
        try:
            letter = await self._broker.last_message(DEAD_LETTERS, subject)
        except ApiError as error:
            raise PayloadError(f"{request.stream}:{request.seq}: neither message nor letter is there") from error
        if HEADER + "Pointer" in letter.headers:
            raise PayloadError(f"{request.stream}:{request.seq}: its letter points to a message that is gone")
        original = subject_of(letter.headers)
        return Message(request.stream, original, letter.payload, None, request.seq, 0, dead.ts)


def subject_of(headers: Mapping[str, Any]) -> str:
    """The subject of a dead letter's message, which its header holds with escapes."""
    return str(headers[HEADER + "Subject"]).encode("ascii").decode("unicode_escape")
