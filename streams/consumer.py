"""One durable consumer's intake: attach, pull continuously on one inbox, and attach anew after any doubt.

An attach checks that the stream and the durable are those that the store knows, resets the durable to the message after
the floor, and pulls on a new inbox. From there deliveries must carry consumer sequences 1, 2, 3 …; a gap means that
something was lost or served to somebody else. A gap, a reconnect, missed heartbeats, or a status 409 or 503 all lead to
the next attach; what was delivered before and not started is dropped, for it comes again in order. A shared durable,
which several processes consume, is neither reset nor counted: an attach only asks anew.

Pulls overlap: a new request is sent when a quarter of the room is free, no more is asked for than there is room, and
each request ends at a number of bytes, so memory is bounded. A push durable is not asked: it sends to a subject that
the attach has named, and is left alone while there is no room. The handling of messages is the sink's business
(streams/worker.py).
"""

import asyncio
import json
import logging
import random
import time
from typing import Protocol

import attrs

from models.errors import ApiError, AttachRefused, BrokerUnavailable
from state.store import Floor
from streams.broker import Broker, Inbox
from streams.deliveries import PullStatus
from streams.message import Message
from streams.position import check_stream
from streams.provision import (
    consumer_info,
    ensure_consumer,
    first_floor,
    point_consumer,
    reset_consumer,
    stream_info,
)
from streams.topology import HEARTBEAT_S, MAX_ACK_PENDING, NANOSECONDS, ConsumerSpec

log = logging.getLogger(__name__)

PULL_EXPIRES_S = 30
PULL_LIMIT_BYTES = 16 * 1024 * 1024
LOOK_INTERVAL_S = HEARTBEAT_S / 2
MISSED_AFTER_S = 2 * HEARTBEAT_S + 0.3
REFUSED_RETRY_S = 2.0
ATTACH_GRACE_S = 0.5

STATUS_ALIVE = 100
STATUS_ENDED = (404, 408)
BOUND_REACHED = ("batch completed", "message size exceeds maxbytes")
"""How a request with ``max_bytes`` ends well: 409, like trouble."""


@attrs.frozen(kw_only=True)
class Attached:
    """What an attach has found, before deliveries follow.

    Args:
        floor: the committed floor, or where a new durable begins.
        delivered_seq: the highest sequence that was delivered to anybody so far.
        subjects: the subjects that the durable filters.
        expired: the first and the last sequence that the stream has dropped unread.
    """

    floor: Floor
    delivered_seq: int
    subjects: tuple[str, ...]
    expired: tuple[int, int] | None


class Sink(Protocol):
    """Who takes the messages."""

    @property
    def floor(self) -> Floor | None:
        """The committed floor; None before the first attach."""

    @property
    def lost(self) -> str | None:
        """Why deliveries can't be trusted, once one of them showed that the stream has lost data."""

    async def attached(self, found: Attached) -> bool:
        """Told before each attach; in an ordered one, what has not started is dropped, for it comes again.

        Returns:
            False when the store can't take note of it, so that there must be no attach now.
        """

    def deliver(self, message: Message) -> None:
        """Takes a message; must not raise."""

    def room(self) -> int:
        """How many more messages may be taken."""


class Consumer:
    """The intake of one durable.

    Args:
        store_id: the identity of the store that positions this durable.
        log_level: of what is said of each attach.
    """

    def __init__(
        self, broker: Broker, spec: ConsumerSpec, *, store_id: str, sink: Sink, log_level: int = logging.INFO
    ) -> None:
        self._log_level = log_level
        self._broker = broker
        self._spec = spec
        self._store_id = store_id
        self._sink = sink
        self._inbox: Inbox | None = None
        self._generation = 0
        self._outstanding = 0
        self._expected = 1
        self._is_proven = False
        self._is_stopping = False
        self._received_at = 0.0
        self._broken = asyncio.Event()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self.reason: str | None = "not attached yet"
        self.is_refused = False
        self.attach_count = 0
        self.attached_at = 0.0
        self._detached_at: float | None = time.monotonic()
        broker.on_reconnect(lambda: self.break_off("reconnected"))

    @property
    def detached_reason(self) -> str | None:
        """Why no deliveries flow; an attach that is on its way gets half a second before it counts.

        An attach after a break ends that once it has proved to last, for a server may break off each one at once.
        """
        is_new = self._detached_at is None or time.monotonic() - self._detached_at < ATTACH_GRACE_S
        return None if is_new or self._is_stopping else f"no deliveries: {self.reason}"

    @property
    def is_attached(self) -> bool:
        """Whether deliveries flow, as far as this side knows."""
        return self._inbox is not None and not self._broken.is_set()

    def break_off(self, reason: str) -> None:
        """Stops dispatching what is delivered; the next attach follows."""
        if not self._broken.is_set():
            self.reason = reason
            self._detached_at = self._detached_at or time.monotonic()
            self._broken.set()

    def hold(self, reason: str) -> None:
        """Breaks off and stays detached until ``resume``."""
        self._resumed.clear()
        self.break_off(reason)

    def resume(self) -> None:
        """Attaches again after ``hold``, unless intake has ended."""
        if not self._is_stopping:
            self._resumed.set()

    async def run(self) -> None:
        """Attaches and feeds the sink until cancelled."""
        failures = 0
        while True:
            await self._resumed.wait()
            await self._broker.connected.wait()
            if not self._resumed.is_set():  # held while NATS was away
                continue
            try:
                await self._attach()
            except AttachRefused as error:
                if not self.is_refused:
                    log.error("consumer refused", extra={"fields": {"durable": self._spec.durable, "why": str(error)}})
                self.is_refused, self.reason = True, str(error)
                await asyncio.sleep(REFUSED_RETRY_S)
            except (BrokerUnavailable, ApiError) as error:
                self.reason = f"can't attach: {error}"
                failures += 1
                await _back_off(failures)
            else:
                await self._feed()
                failures = 0 if self._is_proven else failures + 1
                await _back_off(failures)

    async def _attach(self) -> None:
        self._broken.clear()  # nothing is awaited before, so that a hold is never overlooked
        self._is_proven = False
        await self._detach()
        self._detached_at = self._detached_at or time.monotonic()
        floor, expired = await self._check_stream()
        info, was_missing = await ensure_consumer(self._broker, self._spec, store_id=self._store_id)
        subjects = tuple(info["config"].get("filter_subjects") or [info["config"].get("filter_subject", ">")])
        delivered_seq = info["delivered"]["stream_seq"]
        found = Attached(floor=floor, delivered_seq=delivered_seq, subjects=subjects, expired=expired)
        if not await self._sink.attached(found):
            raise BrokerUnavailable("the store takes no writes")
        inbox_subject = self._broker.new_inbox()
        if self._spec.is_push:
            await point_consumer(self._broker, self._spec, info, inbox_subject)
        if was_missing or not self._spec.is_shared:
            await reset_consumer(self._broker, self._spec, self._sink_floor_seq() + 1, store_id=self._store_id)
        await self._listen(inbox_subject)
        if not self.attach_count and self.is_attached:  # the start alone: after a break an attach has to prove itself
            self._detached_at = None
        self.attach_count += 1
        self.attached_at = time.monotonic()
        if self.is_refused:
            self.is_refused, self.reason = False, "not attached yet"
        fields = {"durable": self._spec.durable, "from_seq": self._sink_floor_seq() + 1}
        log.log(self._log_level, "attached", extra={"fields": fields})

    async def _listen(self, subject: str) -> None:
        """Takes deliveries from an inbox that nobody else knows, from consumer sequence 1 on."""
        self._generation += 1
        generation = self._generation
        self._outstanding, self._expected = 0, 1
        self._received_at = time.monotonic()
        self._inbox = await self._broker.subscribe_deliveries(
            subject,
            lambda message: self._on_message(message, generation),
            lambda status: self._on_status(status, generation),
        )
        await self.top_up()

    def _sink_floor_seq(self) -> int:
        return self._sink.floor.seq if self._sink.floor else 0

    async def _check_stream(self) -> tuple[Floor, tuple[int, int] | None]:
        """Checks the stream against the floor; the first time, there is only its creation to take note of.

        Returns:
            The floor, and the range that the stream has dropped before it was read, if any.
        """
        spec, floor = self._spec, self._sink.floor
        if self._sink.lost:
            raise AttachRefused(self._sink.lost)
        info = await stream_info(self._broker, spec.stream)
        if info is None:
            if floor is None:
                raise BrokerUnavailable(f"stream {spec.stream} is missing: 'streams apply' makes it, or says why not")
            raise AttachRefused(
                f"stream {spec.stream} is gone, and this store has read it up to sequence {floor.seq}: restore it, or "
                "start with another STATE_DIR and NATS_DURABLE_PREFIX"
            )
        if floor is None:
            seq, ts = await first_floor(self._broker, spec, info)
            return Floor(durable=spec.durable, stream=spec.stream, created=info["created"], seq=seq, ts=ts), None
        message = await self._broker.message_at(spec.stream, floor.seq) if floor.seq else None
        check_stream(floor, info, message.ts if message else None)
        first = info["state"]["first_seq"]
        if first <= floor.seq + 1 or info["state"]["last_seq"] <= floor.seq:
            return floor, None
        log.error(
            "messages may have been removed from the stream before they were read",
            extra={"fields": {"stream": spec.stream, "from_seq": floor.seq + 1, "to_seq": first - 1}},
        )
        return floor, (floor.seq + 1, first - 1)

    async def _feed(self) -> None:
        """Keeps pulling until something breaks the attach off.

        While the loop stands still nobody listens, so what comes late by that counts as no silence of the server.
        """
        looked_at = time.monotonic()
        while not self._broken.is_set():
            then, looked_at = looked_at, time.monotonic()
            self._received_at += max(0.0, looked_at - then - LOOK_INTERVAL_S)
            silent_s = looked_at - self._received_at
            is_awaiting = self._outstanding or self._spec.is_push
            if is_awaiting and silent_s > MISSED_AFTER_S and not self._is_stopping:
                self.break_off("missed heartbeats")
                break
            if self._spec.is_push and self._sink.room() <= 0:
                await self._pause()
                break
            if not is_awaiting:
                self._received_at = time.monotonic()
            await self.top_up()
            try:
                async with asyncio.timeout(LOOK_INTERVAL_S):  # wait_for() may swallow a cancellation
                    await self._broken.wait()
            except TimeoutError:
                self._prove()
        log.warning("attaching anew", extra={"fields": {"durable": self._spec.durable, "why": self.reason}})

    async def _pause(self) -> None:
        """Listens no more while a push durable sends more than there is room for; the next attach gets it again."""
        await self._detach()
        self.break_off("no room for what the server sends")
        while self._sink.room() < MAX_ACK_PENDING // 2 and self._resumed.is_set():
            await asyncio.sleep(HEARTBEAT_S / 2)

    def _prove(self) -> None:
        """Takes an attach for good: a message came, or nothing has broken it off for a while."""
        self._is_proven = True
        self._detached_at = self.reason = None

    async def top_up(self) -> None:
        """Asks for as many messages as there is room, once that is worth a request."""
        if self._inbox is None or self._broken.is_set() or not self._resumed.is_set() or self._spec.is_push:
            return
        wanted = self._sink.room() - self._outstanding
        if wanted <= 0 or (wanted < MAX_ACK_PENDING // 4 and self._outstanding):
            return
        request = {
            "batch": wanted,
            "max_bytes": max(PULL_LIMIT_BYTES, 2 * self._broker.max_payload_bytes),
            "expires": PULL_EXPIRES_S * NANOSECONDS,
            "idle_heartbeat": int(HEARTBEAT_S * NANOSECONDS),
        }
        self._outstanding += wanted
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._spec.stream}.{self._spec.durable}"
        if not await self._broker.send(subject, json.dumps(request).encode(), reply=self._inbox.subject):
            self.break_off("can't send a pull request")

    def _on_message(self, message: Message, generation: int) -> None:
        if generation != self._generation or self._broken.is_set():
            return
        self._received_at = time.monotonic()
        if message.consumer_seq != self._expected and not self._spec.is_shared:
            self.break_off(f"delivery {message.consumer_seq} came instead of {self._expected}")
            return
        self._expected += 1
        self._outstanding -= 1
        if not self._is_proven:
            self._prove()
        self._sink.deliver(message)

    def _on_status(self, status: PullStatus, generation: int) -> None:
        if generation != self._generation:
            return
        self._received_at = time.monotonic()
        if status.code == STATUS_ALIVE:
            return
        if status.code in STATUS_ENDED or status.description.lower() in BOUND_REACHED:
            self._outstanding = max(0, self._outstanding - status.pending_messages)
        else:
            self.break_off(f"the server said {status.code} {status.description}")

    async def stop_intake(self) -> None:
        """Asks for nothing more and waits until what the server has sent is with the sink."""
        self._resumed.clear()
        self._is_stopping = True
        inbox, self._inbox = self._inbox, None
        if inbox:
            await inbox.drain()
        self._outstanding = 0

    async def hand_back(self) -> None:
        """Gives back what the server counts as delivered and we never got, once all that we got is acked.

        A server that is about to deliver while it unsubscribes the inbox drops that message and awaits its ack.
        """
        if self._broken.is_set() or self.is_refused or not self.attach_count or self._spec.is_shared:
            return
        try:
            info = await consumer_info(self._broker, self._spec.stream, self._spec.durable)
            if info and info["num_ack_pending"]:
                await reset_consumer(self._broker, self._spec, self._sink_floor_seq() + 1, store_id=self._store_id)
        except (BrokerUnavailable, ApiError) as error:
            log.debug("can't hand back deliveries", extra={"fields": {"error": str(error)}})

    async def _detach(self) -> None:
        self._generation += 1
        inbox, self._inbox = self._inbox, None
        if inbox:
            await inbox.close()


async def _back_off(failures: int) -> None:
    """Waits longer after each failure in a row, with jitter, for two seconds at most."""
    if failures:
        await asyncio.sleep(random.uniform(0.5, 1) * min(2.0, 0.05 * 2 ** min(failures, 8)))
