"""Requests to redrive: which are understood, what is refused, and where the message comes from."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from consume_kit import SPEC, FakeBroker
from store_kit import commit
from streams_kit import make_change, make_floor, make_handler, make_item, make_message, ts_of

from models.errors import ApiError, BrokerUnavailable, PayloadError
from state.sqlite import SqliteStore
from state.store import DeadLetter, Floor
from streams.broker import STREAM_NOT_FOUND
from streams.changes import instant
from streams.consumer import Attached
from streams.deliveries import StoredMessage
from streams.message import Message
from streams.redrive import Redriver, Request, _decode, redrive_spec, unescaped
from streams.runner import Item
from streams.subjects import Handler

DEAD = DeadLetter(handler="steps.step", at=1.0, error="boom")


@attrs.define
class FakeTable:
    """A subject table of one handler."""

    handlers: list[Handler]
    name: str = "steps"
    renamed_from: str | None = None

    def handler_for(self, subject: str) -> Handler | None:
        return next((handler for handler in self.handlers if handler.subject == subject), None)


class FakeWorker:
    """Takes messages as a worker does.

    ``busy`` says how often it takes none, ``dropped`` how many it drops then, ``failed`` with which letter the others
    stay dead; without one they are applied.
    """

    def __init__(self, store: SqliteStore) -> None:
        self.spec = SPEC
        self.table = FakeTable([make_handler("steps.step"), make_handler("steps.other", subject="signals.other")])
        self.store = store
        self.taken: list[Message] = []
        self.busy = self.dropped = 0
        self.failed: DeadLetter | None = None

    def redrive(self, message: Message) -> Item | None:
        if self.busy:
            self.busy -= 1
            return None
        self.taken.append(message)
        return make_item(message.seq)

    async def gone(self, item: Item) -> None:
        if self.dropped:
            self.dropped -= 1
        else:
            commit(self.store, make_change(item.seq, is_redriven=True, dead=self.failed))


class FakeCommitter:
    """Writes at once, but for the first ``failures`` times."""

    failures = 0

    async def note(self, write: Callable[[], None]) -> bool:
        if self.failures:
            self.failures -= 1
            return False
        write()
        return True


class World:
    """A redriver whose worker, broker and store are at hand; message 5 is dead and still in its stream."""

    def __init__(self, path: Path) -> None:
        self.store = SqliteStore(path)
        commit(self.store, make_change(5, dead=DEAD), make_change(6))
        self.worker = FakeWorker(self.store)
        self.broker = FakeBroker()
        self.broker.stored[5] = stored(5)
        self.acked: list[str] = []
        self.broker.ack = self._ack  # type: ignore[attr-defined]
        self.committer = FakeCommitter()
        self.redriver = Redriver(
            self.worker,  # type: ignore[arg-type]
            self.broker,  # type: ignore[arg-type]
            store=self.store,
            committer=self.committer,  # type: ignore[arg-type]
            store_id="s",
            retry_s=0.001,
        )

    async def _ack(self, replies: list[str]) -> None:
        self.acked += replies

    async def answer(self, action: Any = "redrive", seq: int = 5, *, stream: str = "SIGNALS", to: str = "step") -> None:
        """Carries one request out."""
        await self.redriver._answer(Request(action=action, stream=stream, seq=seq, reason="spam"), f"steps.{to}")

    def known(self, seq: int = 5) -> DeadLetter:
        found = self.store.fetch_dead(SPEC.durable, seq)
        assert found is not None
        return found


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with a dead letter."""
    return World(tmp_path / "state.db")


def stored(seq: int, **fields: Any) -> StoredMessage:
    """A message of SIGNALS as its stream has it."""
    base = StoredMessage(subject="signals.task.synced", seq=seq, ts=ts_of(seq), payload=b"{}", headers={})
    return attrs.evolve(base, **fields)


def letter(**headers: str) -> StoredMessage:
    """The letter of message 5, with some headers changed."""
    told = {"Time": instant(ts_of(5) / 1e9), "Subject": "signals.task.synced"} | headers
    return stored(99, payload=b"letter", headers={f"Tipstream-{name}": value for name, value in told.items()})


@pytest.mark.parametrize(
    "body",
    [
        {"action": "bury"},
        {"seq": 0},
        {"seq": -1},
        {"seq": 2**63},
        {"seq": 2**80},
        {"seq": "5"},
        {"seq": True},
        {"stream": None},
        {"reason": 1},
    ],
    ids=str,
)
def test_request_that_is_none_is_refused_by_the_decoder(body: dict[str, object]) -> None:
    """An unknown action, a number that no stream has, another type: a payload error, whatever it holds."""
    whole = {"action": "redrive", "stream": "SIGNALS", "seq": 5, "reason": ""} | body
    with pytest.raises(PayloadError):
        _decode(json.dumps(whole).encode())


def test_request_needs_no_reason() -> None:
    """A reason is for those who drop."""
    assert _decode(b'{"action": "redrive", "stream": "S", "seq": 5}') == Request(action="redrive", stream="S", seq=5)


def test_durable_of_the_requests_moves_along_with_its_table() -> None:
    """Each former durable of the table had one of its own."""
    spec = redrive_spec(attrs.evolve(SPEC, former=("a", "b")))
    assert (spec.durable, spec.former) == (f"{SPEC.durable}-redrive", ("a-redrive", "b-redrive"))
    assert (spec.stream, spec.subjects) == ("DEAD_LETTERS", ("deadletters.redrive.steps.*",))


@pytest.mark.parametrize("text", ["plain", "\u00e9\n\\", "\U0001f600"], ids=ascii)
def test_escaped_text_comes_back(text: str) -> None:
    """What a letter escapes is read again; half an escape, or what nobody has escaped, does no harm."""
    assert unescaped(text.encode("unicode_escape").decode("ascii")) == text
    assert unescaped("a\\u12") == "a\ufffd" and unescaped("é\\") == "?\ufffd"


async def test_redrive_takes_the_message_from_its_stream(world: World) -> None:
    """The original under its own sequence and timestamp, without a reply; dead is applied then."""
    await world.answer()
    (taken,) = world.worker.taken
    assert (taken.seq, taken.ts, taken.payload, taken.reply) == (5, ts_of(5), b"{}", None)
    assert world.known().state == "applied"


@pytest.mark.parametrize("gone", ["expired", "another", "stream"])
async def test_redrive_takes_the_letter_where_the_stream_lacks_the_message(world: World, gone: str) -> None:
    """The message is gone, another one has its sequence, or the stream itself is gone."""
    world.broker.stored = {5: stored(5, ts=ts_of(6))} if gone == "another" else {}
    if gone == "stream":

        async def missing(stream: str, seq: int) -> None:
            raise ApiError("STREAM.MSG.GET.SIGNALS", STREAM_NOT_FOUND, "stream not found")

        world.broker.message_at = missing  # type: ignore[method-assign]
    world.broker.last = letter()
    await world.answer()
    (taken,) = world.worker.taken
    assert (taken.seq, taken.ts, taken.subject, taken.payload) == (5, ts_of(5), "signals.task.synced", b"letter")


@pytest.mark.parametrize(
    ("last", "why"),
    [
        pytest.param(None, "neither message nor letter", id="no-letter"),
        pytest.param(letter(Time="2020-01-01T00:00:00+00:00"), "neither message nor letter", id="of-another-message"),
        pytest.param(letter(Pointer="SIGNALS:5"), "points to a message that is gone", id="pointer"),
    ],
)
async def test_redrive_of_what_nobody_has_is_refused(world: World, last: StoredMessage | None, why: str) -> None:
    """No message, and no letter that holds it: it stays dead, and no handler runs."""
    world.broker.stored, world.broker.last = {}, last
    with pytest.raises(PayloadError, match=why):
        await world.answer()
    assert (world.worker.taken, world.known().state) == ([], "dead")


@pytest.mark.parametrize("action", ["redrive", "drop"])
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        pytest.param({"seq": 6}, "no dead letter", id="applied"),
        pytest.param({"stream": "FEEDBACK"}, "no dead letter", id="stream"),
        pytest.param({"to": "other"}, "dead letter of steps.step", id="handler"),
        pytest.param({"to": "nobody"}, "dead letter of steps.step", id="no-handler"),
    ],
)
async def test_request_for_another_message_is_refused(
    world: World, fields: dict[str, Any], why: str, action: str
) -> None:
    """What is not dead here, or not of the handler that is asked, is left as it is."""
    with pytest.raises(PayloadError, match=why):
        await world.answer(action, **fields)
    assert (world.worker.taken, world.known().state) == ([], "dead")


async def test_redrive_of_a_subject_that_another_handler_has_now_is_refused(world: World) -> None:
    """A redrive reaches only the handler that gave the message up."""
    world.broker.stored[5] = stored(5, subject="signals.other")
    with pytest.raises(PayloadError, match=r"now handled by steps\.other"):
        await world.answer()


async def test_drop_keeps_its_reason_once(world: World) -> None:
    """Dropped is the last word: neither another drop nor a redrive changes it."""
    await world.answer("drop")
    assert (world.known().state, world.known().note) == ("dropped", "spam")
    for action in ("drop", "redrive"):
        with pytest.raises(PayloadError, match="dropped already"):
            await world.answer(action)


async def test_redrive_waits_for_nats_the_store_and_its_turn(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried until it is done, and says why it waits once a reason, not once a try."""
    failures = [BrokerUnavailable("away")] * 3 + [ApiError("x", 10008, "busy")]

    async def message_at(stream: str, seq: int) -> StoredMessage:
        if failures:
            raise failures.pop(0)
        return stored(seq)

    world.broker.message_at = message_at  # type: ignore[method-assign]
    world.worker.busy = 2
    await world.answer()
    waits = [record for record in caplog.records if record.message == "redrive waits"]
    assert (len(waits), len(world.worker.taken), world.known().state) == (3, 1, "applied")


async def test_redrive_that_was_dropped_is_carried_out_again(world: World) -> None:
    """Without an outcome the request is not over; one that applied it meanwhile ends it."""
    world.worker.dropped = 2
    await world.answer()
    assert (len(world.worker.taken), world.known().redrives) == (3, 1)


async def test_redrive_that_fails_again_is_over(world: World) -> None:
    """It stays dead with the new error, and is not run again for the same request."""
    world.worker.failed = attrs.evolve(DEAD, error="again")
    await world.answer()
    known = world.known()
    assert (len(world.worker.taken), known.state, known.error, known.redrives) == (1, "dead", "again", 1)


async def serve(world: World, *messages: Message) -> None:
    """Delivers, and waits until as many are acked."""
    serving = asyncio.create_task(world.redriver._serve())
    for message in messages:
        world.redriver.deliver(message)
    while not world.redriver._queue.empty() or len(world.acked) < len(messages):
        await asyncio.sleep(0.001)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


def request(seq: int, body: bytes) -> Message:
    """A request as it is delivered."""
    return make_message(seq, body, subject="deadletters.redrive.steps.step")


async def test_requests_are_acked_after_their_position_is_stored(world: World) -> None:
    """Nonsense is acked too; what comes again is acked without a run; a new attach drops what waits."""
    floor = attrs.evolve(make_floor(2, durable=world.redriver.spec.durable), stream="DEAD_LETTERS")
    found = Attached(floor=floor, delivered_seq=0, subjects=(), expired=None)
    assert await world.redriver.attached(found) and world.redriver.floor == floor
    world.redriver.deliver(request(3, b"{"))
    assert await world.redriver.attached(found) and world.redriver.room() == 1000
    ask = b'{"action": "redrive", "stream": "SIGNALS", "seq": 5}'
    await serve(world, request(3, b"{"), request(4, ask), request(4, ask), request(2, ask))
    assert world.acked == ["$JS.ACK.3", "$JS.ACK.4", "$JS.ACK.4", "$JS.ACK.2"]
    assert len(world.worker.taken) == 1
    loaded = world.store.load(world.redriver.spec.durable).floor
    assert isinstance(loaded, Floor) and (loaded.seq, loaded.ts) == (4, ts_of(4))


async def test_first_attach_waits_for_the_store(world: World) -> None:
    """Where requests begin is stored before any of them is taken."""
    world.committer.failures = 1
    found = Attached(floor=make_floor(2), delivered_seq=0, subjects=(), expired=None)
    assert not await world.redriver.attached(found) and world.redriver.floor is None


async def test_drop_is_tried_again_when_the_store_takes_no_writes(world: World) -> None:
    """A store that fails once is asked again."""
    world.committer.failures = 1
    await world.answer("drop")
    assert world.known().state == "dropped"
