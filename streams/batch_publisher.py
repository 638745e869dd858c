"""Publishes records to a log of JetStream, one batch at a time, and says which of them are stored.

A batch goes as an atomic one: stored whole or not at all, with one acknowledgement. When the stream refuses it (a
record was stored by an earlier attempt whose answer was lost, or one is too large) or takes no atomic batches, its
records go one by one, and the stream's dedupe window finds those that it has already. What is left over is the
caller's to repeat.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

import attrs

from models.errors import ApiError, BrokerUnavailable
from streams.batches import HEADERS_BYTES, encode_batch, encode_singles
from streams.broker import MIN_SERVER, Broker, Inbox
from streams.deliveries import parse_pub_ack
from streams.spool import Record

log = logging.getLogger(__name__)

MESSAGE_TOO_LARGE = 10054
BATCHES_DISABLED = 10174
SINGLES_S = 60.0
"""How long a stream that takes no atomic batches is not asked again."""
LOOK_S = 0.05
"""How often the wait for an answer looks whether to go on."""


@attrs.frozen(kw_only=True)
class Published:
    """What became of a batch, by ids; what is in neither set is not known to be stored, and ``error`` says why."""

    stored: frozenset[str] = frozenset()
    too_large: frozenset[str] = frozenset()
    error: str | None = None

    @property
    def settled(self) -> frozenset[str]:
        """What need not be sent again."""
        return self.stored | self.too_large


class BatchPublisher:
    """The publisher of one process; for one batch at a time.

    Only the last batch before a loss of the connection may be stored without our knowing. It is stored once all the
    same if it is repeated, with the same ids, within the stream's dedupe window.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._inbox: Inbox | None = None
        self._base = ""
        self._numbers = itertools.count(1)
        self._name = secrets.token_hex(6)
        self._waiting: set[str] = set()
        self._answers: dict[str, bytes] = {}
        self._all_answered = asyncio.Event()
        self._connection = 0
        self._singles_until = 0.0
        broker.on_reconnect(self._note_connection)

    async def publish(self, records: Sequence[Record], *, may_wait: Callable[[float], bool]) -> Published:
        """Publishes records in their order.

        Args:
            records: at most what streams/batches.py names as the limits of a batch.
            may_wait: told the seconds since sending, says whether to wait on for an answer.
        """
        limit = self._broker.max_payload_bytes - HEADERS_BYTES
        too_large = frozenset(record.id for record in records if len(record.payload) > limit)
        fitting = [record for record in records if record.id not in too_large]
        if not fitting:
            return Published(too_large=too_large)
        try:
            await self._listen()
            if len(fitting) > 1 and self._takes_batches():
                result = await self._publish_whole(fitting, may_wait)
                if result is not None:
                    return attrs.evolve(result, too_large=too_large)
            result = await self._publish_each(fitting, may_wait)
        except BrokerUnavailable as error:
            return Published(too_large=too_large, error=str(error))
        return attrs.evolve(result, too_large=too_large | result.too_large)

    async def close(self) -> None:
        """Stops listening for answers."""
        if self._inbox:
            await self._inbox.close()

    def _takes_batches(self) -> bool:
        return self._broker.server_version >= MIN_SERVER and time.monotonic() >= self._singles_until

    async def _publish_whole(self, records: Sequence[Record], may_wait: Callable[[float], bool]) -> Published | None:
        """Sends one atomic batch; None when the stream refuses it as such."""
        reply = self._new_reply()
        commands = encode_batch(records, batch_id=f"{self._name}{next(self._numbers)}", reply=reply)
        answers = await self._ask(commands, [reply], may_wait)
        if reply not in answers:
            return Published(error="no answer in time")
        try:
            parse_pub_ack(records[0].subject, _body(records[0], answers[reply]))
        except ApiError as error:
            log.debug("a batch was refused", extra={"fields": {"error": str(error)}})
            if error.code == BATCHES_DISABLED:
                self._singles_until = time.monotonic() + SINGLES_S
            return None
        return Published(stored=frozenset(record.id for record in records))

    async def _publish_each(self, records: Sequence[Record], may_wait: Callable[[float], bool]) -> Published:
        replies = {self._new_reply(): record for record in records}
        commands = encode_singles((record, reply) for reply, record in replies.items())
        answers = await self._ask(commands, list(replies), may_wait)
        stored, too_large = set(), set()
        problem = "no answer in time" if len(answers) < len(replies) else None
        for reply, body in answers.items():
            record = replies[reply]
            try:
                parse_pub_ack(record.subject, _body(record, body))
                stored.add(record.id)
            except ApiError as error:
                if error.code == MESSAGE_TOO_LARGE:
                    too_large.add(record.id)
                else:
                    problem = str(error)
            except BrokerUnavailable as error:
                problem = str(error)
        return Published(stored=frozenset(stored), too_large=frozenset(too_large), error=problem)

    async def _ask(
        self, commands: bytes, replies: Sequence[str], may_wait: Callable[[float], bool]
    ) -> Mapping[str, bytes]:
        """Sends, and collects the answers until all are there, the connection is lost or the wait is given up."""
        self._waiting, self._answers = set(replies), {}
        self._all_answered.clear()
        connection, begun_at = self._connection, time.monotonic()
        if not await self._broker.send_commands(commands):
            raise BrokerUnavailable("not connected")
        while (
            self._waiting
            and self._connection == connection
            and self._broker.connected.is_set()
            and may_wait(time.monotonic() - begun_at)
        ):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._all_answered.wait()
        self._waiting.clear()
        return self._answers

    def _on_reply(self, subject: str, body: bytes) -> None:
        if subject in self._waiting:
            self._waiting.remove(subject)
            self._answers[subject] = body
            if not self._waiting:
                self._all_answered.set()

    async def _listen(self) -> None:
        if self._inbox is None:
            base = self._broker.new_inbox()
            self._inbox = await self._broker.subscribe_replies(f"{base}.*", self._on_reply)
            self._base = base

    def _new_reply(self) -> str:
        return f"{self._base}.{next(self._numbers)}"

    def _note_connection(self) -> None:
        self._connection += 1


def _body(record: Record, body: bytes) -> bytes:
    """The answer, unless nobody listens on the subject."""
    if not body:
        raise BrokerUnavailable(f"no stream takes {record.subject}")
    return body
