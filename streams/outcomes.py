"""From a verdict to what is durable: a message's outcome on its way into the store, and what follows from its commit.

``settle`` turns a verdict into a change and hands it to the committer. Once that is committed, the delivery is acked (a
dead letter's is terminated when its letter is stored), its events go to the outbox, and a parked lane gets its next
turn.
"""

import functools
import json
import logging
import random
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import attrs

from models.errors import PayloadError, StoreError
from state.store import Change, Floor, Store
from streams import changes
from streams.broker import Broker
from streams.commit import Committer, Entry
from streams.context import Effects, Rows
from streams.held import Held
from streams.isolation import Isolation
from streams.message import Message
from streams.outbox import Outbox, Waiting
from streams.parked import ParkedLanes
from streams.position import Position, SharedPosition
from streams.runner import Item
from streams.stats import TableStats
from streams.suspects import Gate
from streams.topology import MAX_ACK_PENDING
from streams.verdict import Verdict, describe

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Services:
    """What the workers of one process share; ``alive`` names the processes of this STATE_DIR that live."""

    broker: Broker
    store: Store
    store_id: str
    committer: Committer
    outbox: Outbox
    publishable: Callable[[str], bool]
    gate: Gate
    rng: random.Random
    version: str
    alive: Callable[[], Collection[str]]
    isolation: Isolation | None = None


@attrs.define(kw_only=True)
class Hand:
    """What one worker has in hand: deliveries, parked lanes, rows that wait for their commit, and its position.

    Of the processes that share a table only one ``runs_parked``: the owner. ``letters`` are messages that were given
    up and whose dead letters JetStream has not stored yet, by sequence; ``parked_elsewhere`` counts what waits in the
    store for all processes; ``trying`` are failed messages that the server shall keep once that is committed.
    """

    durable: str
    stats: TableStats
    is_shared: bool = False
    runs_parked: bool = True
    parked_elsewhere: int = 0
    held: Held = attrs.field(factory=Held)
    parked: ParkedLanes = attrs.field(factory=ParkedLanes)
    waiting: Rows = attrs.field(factory=dict)
    letters: dict[int, Message] = attrs.field(factory=dict)
    trying: set[int] = attrs.field(factory=set)
    position: Position | SharedPosition | None = None


@attrs.define(eq=False)
class Outcome:
    """What is remembered of an entry until it is committed."""

    item: Item
    verdict: Verdict
    rows: Rows


class Owner(Protocol):
    """The worker whose outcomes these are."""

    def finish(self, message: Message, word: bytes) -> None:
        """Answers a delivery whose outcome is durable."""

    async def top_up(self) -> None:
        """Asks for more messages, once there is room."""

    def unpark_due(self) -> None:
        """Runs the parked lanes whose time has come."""

    def on_store_failure(self, reason: str) -> None:
        """Drops everything that is not committed and takes no more."""

    def on_store_recovery(self) -> None:
        """Starts again from what is committed."""


class Outcomes:
    """The outcomes of one worker; the committer's participant."""

    def __init__(self, hand: Hand, services: Services, owner: Owner) -> None:
        self._hand = hand
        self._services = services
        self._owner = owner
        self.on_store_failure = owner.on_store_failure
        self.on_store_recovery = owner.on_store_recovery
        services.committer.join(self)

    def settle(self, item: Item, verdict: Verdict, effects: Effects | None) -> None:
        """Turns a verdict into a change and hands it to the committer."""
        now, hand = time.time(), self._hand
        if verdict.kind == "applied":
            change = changes.applied(hand.durable, item, effects, now=now)
            rows = effects.rows if effects else {}
            hand.waiting.update(rows)
            self._submit(Outcome(item, verdict, rows), change)
            return
        hand.stats.failed(item.handler.name)
        log.warning("handler failed", extra={"fields": _failure_fields(item, verdict)})
        log.debug("handler said", extra={"fields": {"seq": item.seq, "error": verdict.error}})
        if verdict.kind == "dead":
            change = self._dead(item, verdict, now)
        elif self._may_nak(item, now):
            hand.trying.add(item.seq)
            change = changes.tried(hand.durable, item, verdict, now=now)
        else:
            change = changes.parked(hand.durable, item, verdict, now=now)
            if not item.is_parked:
                hand.parked.join(item.key)
        self._submit(Outcome(item, verdict, {}), change)

    def park_behind(self, item: Item) -> None:
        """Parks a message that was not tried behind the others of its lane."""
        self._hand.parked.join(item.key)
        self._submit(Outcome(item, Verdict(kind="parked"), {}), changes.parked_behind(self._hand.durable, item))

    def _may_nak(self, item: Item, now: float) -> bool:
        """Whether the server may keep a failed message until its next attempt: without order, within a bound.

        A message that waits there takes one of the places of ``max_ack_pending``, of all workers.
        """
        if not self._hand.is_shared or item.is_parked:
            return False
        try:
            committed_count = self._services.store.count_tried(self._hand.durable, now)
        except StoreError:
            return False
        return committed_count + len(self._hand.trying) < MAX_ACK_PENDING // 2

    def _dead(self, item: Item, verdict: Verdict, now: float) -> Change:
        position = self._hand.position
        facts = changes.LetterFacts(
            epoch=position.floor.created if position else "",
            version=self._services.version,
            max_payload_bytes=self._services.broker.max_payload_bytes,
        )
        return changes.dead(self._hand.durable, item, verdict, now=now, facts=facts)

    def _submit(self, outcome: Outcome, change: Change) -> None:
        self._services.committer.submit(Entry(self, change, outcome))

    def advance(self, entries: Sequence[Entry]) -> Floor | None:
        """Marks the entries' messages as settled and computes the floor that their commit makes true."""
        for entry in entries:
            place = entry.outcome.item.place
            if place is not None:
                place.is_settled = True
        return self._hand.position.advance() if self._hand.position else None

    async def on_committed(self, entries: Sequence[Entry], floor: Floor | None) -> None:
        """Acks what is durable now, and lets its events and the rest of its lane go."""
        hand = self._hand
        replies: list[str] = []
        marks: dict[int, int] = {}
        for entry in entries:
            outcome: Outcome = entry.outcome
            item = outcome.item
            hand.held.discard(item)
            self._forget_rows(outcome.rows)
            if entry.is_repeated:
                self._drop(entry.change, item, replies)
                continue
            is_still_dead = item.is_redriven and entry.change.dead is not None
            hand.stats.committed(item, "parked" if is_still_dead else outcome.verdict.kind)
            marks[item.seq] = item.ts
            has_letter = entry.change.dead is not None and not item.is_redriven
            self._release(entry.change, item, is_dead=has_letter)
            if entry.change.tried:
                hand.trying.discard(item.seq)
                delay = json.dumps({"delay": int(outcome.verdict.delay_s * 1e9)})
                self._owner.finish(item.message, b"-NAK " + delay.encode())
            elif item.message.reply and not has_letter:
                replies.append(item.message.reply)
        hand.stats.touched()
        if hand.position and floor:
            hand.position.committed(floor, {seq: ts for seq, ts in marks.items() if seq > floor.seq})
        await self._services.broker.ack(replies)
        self._owner.unpark_due()
        await self._owner.top_up()

    def _release(self, change: Change, item: Item, *, is_dead: bool) -> None:
        """Hands committed events to the outbox, and gives a parked lane its next turn."""
        on_stored = None
        if is_dead:
            message = attrs.evolve(item.message, payload=b"")  # the letter has it
            on_stored = functools.partial(self._terminate, message)
            if message.reply:
                self._hand.letters[item.seq] = message
        for row in change.outbox:
            self._services.outbox.enqueue(Waiting(row, on_stored))
        if change.parked and not self._hand.runs_parked:
            self._hand.parked.finish_first(item.key, time.time())
        elif change.parked and change.parked.attempts:
            self._hand.parked.schedule(item.key, change.parked.due)
        elif item.is_parked:
            self._hand.parked.finish_first(item.key, time.time())

    def _terminate(self, message: Message) -> None:
        """Answers the newest delivery of a message whose dead letter is stored."""
        self._hand.letters.pop(message.seq, None)
        self._owner.finish(message, b"+TERM")

    def _drop(self, change: Change, item: Item, replies: list[str]) -> None:
        """Lets a message go that another process has given its outcome."""
        self._hand.trying.discard(item.seq)
        if change.parked and not item.is_parked:
            self._hand.parked.finish_first(item.key, time.time())
        if item.message.reply:
            replies.append(item.message.reply)

    def _forget_rows(self, rows: Rows) -> None:
        """Forgets rows that are committed, unless a later message has written them again."""
        for place, written in rows.items():
            if self._hand.waiting.get(place) is written:
                del self._hand.waiting[place]

    def refuse(self, entry: Entry, error: StoreError) -> Entry:
        """Chooses a dead letter for a message whose own change the store refused."""
        outcome: Outcome = entry.outcome
        item, hand = outcome.item, self._hand
        if entry.change.tried:
            hand.trying.discard(item.seq)
        elif outcome.verdict.kind == "parked" and not item.is_parked:
            hand.parked.finish_first(item.key, time.time())
        verdict = Verdict(kind="dead", is_failure=True, error=describe(error))
        hand.stats.failed(item.handler.name)
        return Entry(self, self._dead(item, verdict, time.time()), Outcome(item, verdict, outcome.rows))


def _failure_fields(item: Item, verdict: Verdict) -> dict[str, object]:
    """What a failure's log line says: where the message lies and what went wrong, never what it holds."""
    fields: dict[str, object] = {
        "handler": item.handler.name,
        "stream": item.message.stream,
        "seq": item.seq,
        "verdict": verdict.kind,
        "error": _without_values(verdict.error or ""),
    }
    if verdict.where:
        fields["where"] = verdict.where
    if verdict.kind == "parked":
        fields["retry_in_s"] = round(verdict.delay_s, 1)
    return fields


def _without_values(error: str) -> str:
    """An error's class, and of a payload error the path of the field: the rest may quote what users wrote."""
    name, _, said = error.partition(": ")
    return f"{name}: {said.partition(': ')[0]}" if name == PayloadError.__name__ else name
