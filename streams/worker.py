"""Runs one subject table: a message's way from delivery to ack.

    deliver -> done before? ack -> decode -> lane of its key -> slot -> handler -> verdict
            -> streams/outcomes.py: settle -> group commit -> ack; its events leave from the outbox

Order within a key holds because a lane has one message running at a time, because outcomes are committed in the order
in which they were decided, and because a failing message is parked together with everything behind it in its lane.
"""

import asyncio
import datetime as dt
import logging
import time

import attrs

from models.errors import ApiError, AttachRefused, BrokerUnavailable, PayloadError, StoreError
from state.store import Floor, ParkedMessage
from streams.acks import ACK, Acks
from streams.consumer import Attached, Consumer
from streams.context import Context, Scope
from streams.health import ConsumerHealth
from streams.lanes import Lanes
from streams.message import Message
from streams.outcomes import Hand, Outcomes, Services
from streams.position import Place, Position, SharedPosition
from streams.provision import consumer_info
from streams.runner import Item, Runner, Slot
from streams.slots import Running, Slots
from streams.stats import TableStats
from streams.subjects import Handler, SubjectTable
from streams.suspects import CRASH_LIMIT, Suspects
from streams.topology import EVENT_HEADER_BYTES, HEADER_BUDGET_BYTES, MAX_ACK_PENDING, ConsumerSpec
from streams.unpark import HELD_LIMIT_BYTES, Unparker
from streams.verdict import History, Verdict

log = logging.getLogger(__name__)

TICK_S = 0.1
SHARED_INTERVAL_S = 1.0
CRASHED_WAIT_S = 0.5
WINDOW_LIMIT = 50_000


@attrs.frozen(kw_only=True)
class Limits:
    """NATS_MAX_DELIVER and PARKED_MAX."""

    max_deliver: int
    parked_max: int


class TableWorker:
    """The worker of one subject table, in the process that owns the store."""

    def __init__(self, table: SubjectTable, spec: ConsumerSpec, services: Services, limits: Limits) -> None:
        self.table, self.spec = table, spec
        self._services, self._limits = services, limits
        stats = TableStats(handler.name for handler in table.handlers)
        self._hand = Hand(durable=spec.durable, stats=stats, is_shared=spec.is_shared, runs_parked=not spec.is_shared)
        self._lanes: Lanes[Item] = Lanes()
        self._acks = Acks(services.broker, self.top_up)
        self._since: dict[str, int] = {}
        self._parked_elsewhere = 0
        self._is_draining = False
        self.lost: str | None = None
        self.orphans: set[str] = set()
        self.slots = Slots(table.concurrency, self._lanes.take, self._run)
        self.consumer = Consumer(services.broker, spec, store_id=services.store_id, sink=self)
        recall = self._recall if spec.is_shared else None
        self._runner = Runner(table, self._scope(), max_deliver=limits.max_deliver, rng=services.rng, recall=recall)
        self._outcomes = Outcomes(self._hand, services, self)
        self._unparker = Unparker(self._hand, services.store, self._unpark)
        self._suspects = self._load()

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

    def _recall(self, item: Item) -> History | None:
        """What the store knows of earlier attempts, here or in another process."""
        try:
            tried = self._services.store.fetch_tried(self.spec.durable, item.seq)
        except StoreError:
            return None  # the commit of this failure will fail as well, and the message comes again
        if tried is None:
            return None
        age_s = time.time() - tried.since
        return History(failures=tried.failures, attempts=tried.attempts, age_s=age_s, journal=tried.journal)

    async def run(self) -> None:
        """Consumes until cancelled; what is running then is dropped and comes again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.slots.run(self.table.name), name=f"{self.table.name}-slots")
            group.create_task(self._tick(), name=f"{self.table.name}-tick")
            group.create_task(self.consumer.run(), name=f"{self.table.name}-consumer")
            if self.spec.is_shared:
                group.create_task(self._keep_up(), name=f"{self.table.name}-shared")

    def run_parked(self) -> None:
        """Has this process, of those that share a table, run its parked messages: the owner does."""
        self._hand.runs_parked = True

    async def _keep_up(self) -> None:
        """Follows what other processes did to a shared table: the server's floor, and what waits in the store."""
        while True:
            await asyncio.sleep(SHARED_INTERVAL_S)
            try:
                await self._follow_floor()
                lanes = self._services.store.load_lanes(self.spec.durable)
            except (BrokerUnavailable, ApiError, StoreError) as error:
                log.debug("can't follow a shared table", extra={"fields": {"error": str(error)}})
                continue
            self._parked_elsewhere = sum(lane.count for lane in lanes.values())
            if self._hand.runs_parked:
                self._hand.parked.discover(lanes)

    async def _follow_floor(self) -> None:
        position, spec = self._hand.position, self.spec
        info = await consumer_info(self._services.broker, spec.stream, spec.durable)
        if info is None or not isinstance(position, SharedPosition):
            return
        seq = info["ack_floor"]["stream_seq"]
        if seq > position.floor.seq:
            message = await self._services.broker.message_at(spec.stream, seq)
            position.note_server_floor(seq, message.ts if message else 0)

    async def drain(self) -> None:
        """Stops intake, then waits until everything delivered has its verdict."""
        self._is_draining = True
        await self.consumer.stop_intake()
        while len(self._lanes):
            await asyncio.sleep(TICK_S / 10)

    # What /health asks.

    @property
    def intake_stopped(self) -> str | None:
        """Why no message is taken at the moment, or None."""
        parked_count, position = self._hand.parked.message_count, self._hand.position
        parked_count = max(parked_count, self._parked_elsewhere)
        if parked_count >= self._limits.parked_max:
            return f"{parked_count} messages are parked (PARKED_MAX={self._limits.parked_max})"
        if self._services.outbox.is_full:
            return f"{self._services.outbox.unsent_count} events wait to be published"
        if position and position.window_count > WINDOW_LIMIT:
            return f"{position.window_count} messages were handled beyond the slowest one"
        return None

    @property
    def held_count(self) -> int:
        """Messages in hand that have no outcome yet; parked ones are not in hand."""
        return len(self._hand.held)

    def idle_s(self, quiet_at: float) -> float:
        """Seconds for which messages wait and nothing happens.

        Args:
            quiet_at: when the server had nothing for this durable last, in monotonic seconds.
        """
        begun_at = self._hand.held.since if len(self._hand.held) else quiet_at
        return time.monotonic() - max(self._hand.stats.last_outcome_at, self.consumer.attached_at, begun_at)

    def running(self) -> Running:
        """The attempts that run now."""
        return self.slots.running(time.monotonic())

    def describe(self, seen: ConsumerHealth, idle_s: float) -> ConsumerHealth:
        """Adds what this worker knows to what the server says of the durable."""
        handlers = self._hand.stats.by_handler()
        last_ts = self._hand.stats.last_ts
        return attrs.evolve(
            seen,
            last_msg_ts=dt.datetime.fromtimestamp(last_ts / 1e9, dt.UTC) if last_ts else None,
            processed=sum(counts.processed for counts in handlers.values()),
            errors=sum(counts.errors for counts in handlers.values()),
            dead_lettered=sum(counts.dead_lettered for counts in handlers.values()),
            parked=self._hand.parked.message_count,
            lag_s=self._lag_s(seen.pending, idle_s),
            handlers=handlers,
        )

    def _lag_s(self, pending: int, idle_s: float) -> float:
        """The age of the oldest message in hand; without one, how long nothing happened while some wait."""
        oldest = next(iter(self._hand.held), None)
        if oldest is not None:
            return round(max(0.0, time.time() - oldest.ts / 1e9), 3)
        return round(idle_s, 3) if pending else 0.0

    # What the consumer asks of its sink.

    @property
    def floor(self) -> Floor | None:
        """The committed floor; None before the first attach."""
        return self._hand.position.floor if self._hand.position else None

    def room(self) -> int:
        """How many more messages may be taken: none while too much waits here or elsewhere."""
        if self.intake_stopped or self._hand.held.byte_count > HELD_LIMIT_BYTES:
            return 0
        return MAX_ACK_PENDING - len(self._hand.held)

    async def attached(self, found: Attached) -> bool:
        """Takes what an attach found: the crash suspects after an unclean end, and where subjects begin."""
        self._suspects.note_delivered(found.delivered_seq)
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

    # What a slot does, and what the outcomes ask of their owner.

    async def _run(self, item: Item, slot: Slot) -> None:
        gate = self._services.gate
        if self._is_suspect(item):
            # An innocent one that was hit by chance, for it ran first, is not the first one to run again.
            await asyncio.sleep(CRASHED_WAIT_S * self._suspects.crash_count(item.seq))
            async with gate.alone():
                await self._run_alone(item, slot)
            self._suspects.clear_lane(item.key)
            if item not in self._hand.held:
                self._suspects.acquit(item.seq)
            return
        if item.is_redriven and not await self._may_redrive(item):
            return
        while not gate.is_free:
            await gate.free()
        gate.enter()
        try:
            verdict, ctx = await self._runner.run(item, slot)
        finally:
            gate.leave()
        self._conclude(item, verdict, ctx)

    async def _may_redrive(self, item: Item) -> bool:
        """Notes the start of a redriven message; one with which the process has died stays dead without another run."""
        if self._suspects.crash_count(item.seq):
            self._suspects.acquit(item.seq)
            item.was_noted = True
            reason = "the process died while this message was redriven"
            self._conclude(item, Verdict(kind="dead", is_failure=True, error=reason), None)
            return False
        if item in self._hand.held and await self._services.committer.note_start(self.spec.durable, item.seq, 0):
            item.was_noted = True
            return True
        self._lanes.release(item)
        return False

    def _is_suspect(self, item: Item) -> bool:
        if item.is_redriven:
            return False
        if self.spec.is_shared and not item.is_parked and item.message.num_delivered > 1:
            try:
                started = self._services.store.fetch_started(self.spec.durable, item.seq)
                tried = self._services.store.fetch_tried(self.spec.durable, item.seq)
            except StoreError:
                return False  # its commit will fail as well
            self._suspects.note_redelivered(item.seq, item.message.num_delivered, started=started, tried=tried)
        return self._suspects.is_suspect(item.seq, item.key if item.is_parked else None)

    async def _run_alone(self, item: Item, slot: Slot) -> None:
        """Runs a crash suspect between a durable note of its start and the commit of its outcome."""
        crash_count = self._suspects.crash_count(item.seq)
        committer = self._services.committer
        if crash_count >= CRASH_LIMIT:
            item.was_noted = True
            reason = f"the process died {crash_count} times while this message ran alone"
            self._conclude(item, Verdict(kind="dead", is_failure=True, error=reason), None)
        elif item in self._hand.held and await committer.note_start(self.spec.durable, item.seq, crash_count):
            item.was_noted = True
            self._conclude(item, *await self._runner.run(item, slot))
        else:
            self._lanes.release(item)
        if item in self._hand.held:
            await self._hand.held.gone(item)

    def _conclude(self, item: Item, verdict: Verdict, ctx: Context | None) -> None:
        if item.is_redriven and verdict.kind == "parked":  # it goes back to where it was
            verdict = attrs.evolve(verdict, kind="dead")
        if item not in self._hand.held:  # the store failed meanwhile; the message comes again
            self._lanes.release(item)
        elif verdict.kind == "parked":
            behind = self._lanes.clear_behind(item)
            self._outcomes.settle(item, verdict, None)
            for other in behind:
                self._outcomes.park_behind(other)
        else:
            self._outcomes.settle(item, verdict, ctx.effects if ctx and verdict.kind == "applied" else None)
            self._lanes.release(item)

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
        if self._hand.position is None or self._services.committer.failure or self._hand.held.get(message.seq):
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
