"""Runs one subject table: a message's way from delivery to ack.

    deliver -> done before? ack -> decode -> lane of its key -> slot -> handler -> verdict
            -> streams/outcomes.py: settle -> group commit -> ack; its events leave from the outbox

Order within a key holds because a lane has one message running at a time, because outcomes are committed in the order
in which they were decided, and because a failing message is parked together with everything behind it in its lane.
"""

import asyncio
import functools
import logging
import time

from models.errors import AttachRefused, PayloadError, StoreError
from state.store import Floor, ParkedMessage
from streams.acks import ACK, Acks
from streams.attempts import Attempts
from streams.consumer import Attached, Consumer
from streams.context import Scope
from streams.lanes import Lanes
from streams.message import Message
from streams.outcomes import Hand, Outcomes, Services
from streams.position import Place, Position, SharedPosition
from streams.runner import Item, Runner
from streams.shared import SharedFollower, recall
from streams.slots import Slots
from streams.stats import TableStats
from streams.subjects import Handler, SubjectTable
from streams.suspects import Suspects
from streams.table_health import Limits, TableHealth
from streams.topology import EVENT_HEADER_BYTES, HEADER_BUDGET_BYTES, MAX_ACK_PENDING, ConsumerSpec
from streams.unpark import HELD_LIMIT_BYTES, Unparker
from streams.verdict import History

log = logging.getLogger(__name__)

TICK_S = 0.1


class TableWorker:
    """The worker of one subject table: in the process that owns the store, or, without order, in every process."""

    def __init__(self, table: SubjectTable, spec: ConsumerSpec, services: Services, limits: Limits) -> None:
        self.table, self.spec = table, spec
        self._services = services
        stats = TableStats(handler.name for handler in table.handlers)
        self._hand = Hand(durable=spec.durable, stats=stats, is_shared=spec.is_shared, runs_parked=not spec.is_shared)
        self._lanes: Lanes[Item] = Lanes()
        self._acks = Acks(services.broker, self.top_up)
        self._since: dict[str, int] = {}
        self._is_draining = False
        self.lost: str | None = None
        self.orphans: set[str] = set()
        self.consumer = Consumer(services.broker, spec, store_id=services.store_id, sink=self)
        earlier = functools.partial(recall, services.store, spec.durable) if spec.is_shared else None
        self._runner = Runner(
            table,
            self._scope(),
            max_deliver=limits.max_deliver,
            rng=services.rng,
            recall=earlier,
            isolation=services.isolation,
        )
        self._outcomes = Outcomes(self._hand, services, self)
        self._unparker = Unparker(self._hand, services.store, self._unpark)
        self._attempts = Attempts(
            spec,
            services,
            hand=self._hand,
            lanes=self._lanes,
            runner=self._runner,
            outcomes=self._outcomes,
            suspects=self._load(),
        )
        self.slots = Slots(table.concurrency, self._lanes.take, self._attempts.run)
        self.health = TableHealth(self._hand, limits, services.outbox, slots=self.slots, consumer=self.consumer)

    def _scope(self) -> Scope:
        broker = self._services.broker
        return Scope(
            name=self.table.name,
            tables={table.name: table for table in self.table.tables},
            fetch=self._services.store.fetch_row,
            waiting=self._hand.waiting,
            publishable=self._services.publishable,
            max_payload_bytes=lambda: broker.max_payload_bytes - HEADER_BUDGET_BYTES - EVENT_HEADER_BYTES,
        )

    def _load(self) -> Suspects:
        loaded = self._services.store.load(self.spec.durable)
        self._hand.position = self._position(loaded.floor, loaded.marks) if loaded.floor else None
        self._hand.parked.load(loaded.lanes if self._hand.runs_parked else {})
        self._since = loaded.since
        return Suspects(
            was_unclean=loaded.was_unclean,
            crashes=loaded.crashes,
            lanes=loaded.lanes,
            alive=self._services.alive,
        )

    def _position(self, floor: Floor, marks: dict[int, int], *, is_stored: bool = True) -> Position | SharedPosition:
        return SharedPosition(floor, is_stored=is_stored) if self.spec.is_shared else Position(floor, marks)

    async def run(self) -> None:
        """Consumes until cancelled; what is running then is dropped and comes again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.slots.run(self.table.name), name=f"{self.table.name}-slots")
            group.create_task(self._tick(), name=f"{self.table.name}-tick")
            group.create_task(self.consumer.run(), name=f"{self.table.name}-consumer")
            if self.spec.is_shared:
                follower = SharedFollower(self.spec, self._hand, self._services)
                group.create_task(follower.run(), name=f"{self.table.name}-shared")

    def run_parked(self) -> None:
        """Has this process, of those that share a table, run its parked messages: the owner does."""
        self._hand.runs_parked = True

    async def drain(self) -> None:
        """Stops intake, then waits until everything delivered has its verdict."""
        self._is_draining = True
        await self.consumer.stop_intake()
        while len(self._lanes):
            await asyncio.sleep(TICK_S / 10)

    # What the consumer asks of its sink.

    @property
    def floor(self) -> Floor | None:
        """The committed floor; None before the first attach."""
        return self._hand.position.floor if self._hand.position else None

    def room(self) -> int:
        """How many more messages may be taken: none while too much waits here or elsewhere."""
        if self.health.intake_stopped or self._hand.held.byte_count > HELD_LIMIT_BYTES:
            return 0
        return MAX_ACK_PENDING - len(self._hand.held)

    async def attached(self, found: Attached) -> bool:
        """Takes what an attach found: the crash suspects after an unclean end, and where subjects begin."""
        self._attempts.suspects.note_delivered(found.delivered_seq)
        begin = found.floor.seq if not self.spec.is_shared else max(found.floor.seq, found.delivered_seq)
        if not await self._note(begin + 1, found):
            return False
        if self._hand.position is None:
            self._hand.position = self._position(found.floor, {}, is_stored=False)
        if not self.spec.is_shared:
            self._restart()
        return True

    async def _note(self, begin_seq: int, found: Attached) -> bool:
        """Notes in the store from where on new subjects are read, and what nobody will read any more."""
        store, committer, durable = self._services.store, self._services.committer, self.spec.durable
        fresh = {subject: begin_seq for subject in found.subjects if subject not in self._since}
        if fresh and not await committer.note(lambda: store.note_since(durable, fresh)):
            return False
        self._since.update(fresh)
        if found.expired is None:
            return True
        first, last = found.expired
        return await committer.note(lambda: store.note_gone(durable, first, last, "expired"))

    def _restart(self) -> None:
        """Drops what has not started; the server delivers it again, in order, from the message after the floor."""
        assert self._hand.position is not None, "an attach has set it"
        self._hand.position.restart()
        for item in self._lanes.drop_waiting():
            self._hand.held.discard(item)
            if item.is_parked:
                self._hand.parked.schedule(item.key, 0.0)

    def deliver(self, message: Message) -> None:
        """Takes a message from the consumer: acks it if it is done, otherwise brings it into its lane."""
        position, held = self._hand.position, self._hand.held.get(message.seq)
        assert position is not None, "an attach comes before any delivery"
        try:
            is_done = position.is_done(message.seq, message.ts)
        except AttachRefused as error:
            self._lose(str(error))
            return
        is_done = is_done or self._was_done_elsewhere(message)
        handler = self._handler_for(message.subject)
        if message.seq in self._hand.letters:  # pending until its dead letter is stored
            position.append(Place(message.seq, message.ts, is_settled=True))
            self._hand.letters[message.seq].reply = message.reply
        elif is_done or handler is None:
            position.append(Place(message.seq, message.ts, is_settled=True))
            self.finish(message)
        elif held is None:
            item = self._runner.prepare(message, handler)
            item.place = Place(message.seq, message.ts)
            if self.spec.is_shared:
                item.key, item.is_shared = str(item.seq), True
            self._hand.held.add(item)
            position.append(item.place)
            self._enter(item)
        elif held.ts == message.ts:
            held.message.reply = message.reply
            held.place = held.place or Place(message.seq, message.ts)
            position.append(held.place)
        else:
            self._lose(f"sequence {message.seq} of stream {message.stream} came again with another message")

    def _was_done_elsewhere(self, message: Message) -> bool:
        """Whether a shared message that comes again was only not acked; the commit would find out as well."""
        if not self.spec.is_shared or message.num_delivered == 1:
            return False
        try:
            return self._services.store.has_mark(self.spec.durable, message.seq)
        except StoreError:
            return False

    def _lose(self, what: str) -> None:
        self.lost = what
        self.consumer.break_off(what)

    def _handler_for(self, subject: str) -> Handler | None:
        """Finds a handler; there is none when the durable, or a parked message, is of an earlier declaration."""
        handler = self._runner.handler_for(subject)
        if handler is None and subject not in self.orphans and len(self.orphans) < 100:
            self.orphans.add(subject)
            log.error("no handler any more", extra={"fields": {"durable": self.spec.durable, "subject": subject}})
        return handler

    def _enter(self, item: Item) -> None:
        if item.error is not None:
            self._outcomes.settle(item, self._runner.judge(item, item.error), None)
        elif item.key in self._hand.parked and not item.is_parked:
            self._outcomes.park_behind(item)
        else:
            self._lanes.add(item)
            self.slots.notify()

    # What the outcomes ask of their owner.

    def finish(self, message: Message, word: bytes = ACK) -> None:
        """Answers a delivery whose outcome is durable."""
        self._acks.finish(message, word)

    async def top_up(self) -> None:
        """Asks for more messages, once there is room."""
        await self.consumer.top_up()

    def on_store_failure(self, reason: str) -> None:
        """Drops everything uncommitted; the server still has it."""
        self.consumer.hold(f"the store takes no writes: {reason}")
        self._lanes.drop_waiting()
        self._hand.held.clear()
        self._hand.waiting.clear()
        self._hand.trying.clear()

    def on_store_recovery(self) -> None:
        """Starts again from what is committed."""
        self._load()
        self.consumer.resume()

    # Time.

    async def _tick(self) -> None:
        """Ends overdue attempts, brings due parked lanes back and keeps deliveries alive."""
        beat_at = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self.slots.end_overdue(now)
            self.unpark_due()
            if now - beat_at >= self.table.ack_wait_s / 3:
                beat_at = now
                letters = list(self._hand.letters.values())
                waiting = [item.message for item in self._hand.held] + letters
                await self._services.broker.ack([message.reply for message in waiting if message.reply], b"+WPI")

    def unpark_due(self) -> None:
        """Takes as many due lanes as there is room for; the others keep their turn."""
        services = self._services
        if not (self._is_draining or services.committer.failure or services.outbox.is_full):
            self._unparker.take_due(time.time())

    def _unpark(self, parked: ParkedMessage, now: float) -> None:
        """Brings the first message of a parked lane back; its own commit, or the next one's, comes after this."""
        message = Message(self.spec.stream, parked.subject, parked.payload, None, parked.seq, 0, parked.ts)
        handler = self._handler_for(parked.subject)
        item = self._runner.prepare(message, handler) if handler else self._runner.orphan(message)
        item.key, item.is_parked = parked.lane, True
        item.is_redriven, item.is_shared = parked.is_redriven, self.spec.is_shared
        age_s = now - parked.since if parked.since else 0.0
        item.history = History(failures=parked.failures, attempts=parked.attempts, age_s=age_s, journal=parked.journal)
        self._hand.held.add(item)
        self._enter(item)

    def redrive(self, message: Message) -> Item | None:
        """Runs a dead letter's message once more, at the end of its lane; None while it can't be taken.

        Raises:
            PayloadError: no handler takes it any more.
        """
        handler = self._handler_for(message.subject)
        if handler is None:
            raise PayloadError(f"no handler takes {message.subject!r} any more")
        is_busy = self._is_draining or self._services.committer.failure or self._hand.held.get(message.seq)
        if is_busy or self._hand.position is None:
            return None
        item = self._runner.prepare(message, handler)
        item.is_redriven, item.is_shared = True, self.spec.is_shared
        if self.spec.is_shared:
            item.key = str(message.seq)
        self._hand.held.add(item)
        self._enter(item)
        return item

    async def gone(self, item: Item) -> None:
        """Waits until an item has its outcome committed, or was dropped."""
        while item in self._hand.held:
            await asyncio.sleep(TICK_S / 4)
