"""How many failed messages of a table without order the server keeps, also while their commits are under way."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from consume_kit import FakeBroker, ended
from streams_kit import DURABLE, make_item

from models.errors import StoreError
from state.sqlite import SqliteStore
from streams.commit import Committer, Entry
from streams.message import Message
from streams.outbox import Outbox
from streams.outcomes import Hand, Outcomes, Services
from streams.stats import TableStats
from streams.suspects import Gate
from streams.topology import MAX_ACK_PENDING
from streams.verdict import Verdict

HALF = MAX_ACK_PENDING // 2
LATER = Verdict(kind="parked", delay_s=3600, error="Retry: later")


@attrs.define
class Owner:
    """The worker; keeps its answers to deliveries."""

    answers: list[bytes] = attrs.field(factory=list)

    def finish(self, message: Message, word: bytes) -> None:
        self.answers.append(word)

    async def top_up(self) -> None:
        """There is nothing to ask for."""

    def unpark_due(self) -> None:
        """Nothing is due."""

    def on_store_failure(self, reason: str) -> None:
        raise AssertionError(reason)

    def on_store_recovery(self) -> None:
        raise AssertionError("it never failed")


class Desk:
    """The outcomes of a table without order, and a real store that has committed none of them yet."""

    def __init__(self, folder: Path) -> None:
        self.store = SqliteStore(folder / "state.db")
        self.committer = Committer(self.store, observe=lambda count, seconds: None)
        self.hand = Hand(durable=DURABLE, stats=TableStats([]), is_shared=True, runs_parked=False)
        self.owner = Owner()
        self.outcomes = Outcomes(self.hand, self._services(), self.owner)

    def _services(self) -> Services:
        broker: Any = FakeBroker()
        broker.ack = self._ack
        return Services(
            broker=broker,
            store=self.store,
            store_id="s",
            committer=self.committer,
            outbox=Outbox(broker, forget=self.committer.forget_sent, fetch=self.store.fetch_outbox_row),
            publishable=lambda subject: True,
            gate=Gate(),
            rng=random.Random(1),
            version="1",
            alive=lambda: (),
        )

    async def _ack(self, replies: object) -> None:
        """Acks go nowhere."""

    def fail(self, first: int, last: int) -> None:
        """Messages with these sequences, both ends included, ask to be run again in an hour."""
        for seq in range(first, last + 1):
            self.outcomes.settle(make_item(seq, key=str(seq)), LATER, None)

    @property
    def entries(self) -> list[Entry]:
        """What waits for its commit."""
        return list(self.committer._queue)

    async def commit(self) -> None:
        """Commits all that waits."""
        task = asyncio.create_task(self.committer.run())
        await self.committer.flushed()
        await ended([task])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk of this test alone."""
    made = Desk(tmp_path)
    yield made
    made.committer.close()
    made.store.close()


async def test_failed_messages_take_half_of_the_places_however_slow_the_commits_are(desk: Desk) -> None:
    """Those whose commit is under way count too; beyond half of max_ack_pending they are parked."""
    desk.fail(1, HALF + 100)
    assert [bool(entry.change.tried) for entry in desk.entries] == [True] * HALF + [False] * 100
    await desk.commit()
    assert (desk.hand.trying, desk.hand.parked.message_count) == (set(), 0)  # the owner runs what is parked
    assert len(desk.owner.answers) == desk.store.count_tried(DURABLE, 0.0) == HALF
    desk.fail(HALF + 101, HALF + 101)
    assert [bool(entry.change.parked) for entry in desk.entries] == [True]


async def test_failed_message_whose_change_the_store_refuses_is_given_up_and_leaves_its_place(desk: Desk) -> None:
    """It was to stay on the server, so that no parked lane is one shorter; its dead letter is submitted instead."""
    desk.fail(1, 1)
    [entry] = desk.entries
    refused = desk.outcomes.refuse(entry, StoreError(Path("state.db"), "refused"))
    assert refused.change.dead is not None and refused.change.tried is None
    assert (desk.hand.trying, desk.hand.parked.message_count) == (set(), 0)


async def test_failed_message_that_another_process_has_settled_leaves_its_place(desk: Desk) -> None:
    """A delivery that came twice, to two processes, has one outcome; this one's is dropped."""
    desk.fail(1, 1)
    [entry] = desk.entries
    entry.is_repeated = True
    await desk.outcomes.on_committed([entry], None)
    assert (desk.hand.trying, desk.owner.answers) == (set(), [])
