"""The outbox over a broker that answers as the test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from consume_kit import FakeBroker, ended
from harness import wait_until
from streams_kit import make_outbox_row

from models.errors import ApiError, BrokerError, BrokerUnavailable, StoreError
from state.store import OutboxRow
from streams.broker import WRONG_LAST_SEQUENCE, PubAck
from streams.deliveries import StoredMessage
from streams.outbox import FULL_BYTES, FULL_COUNT, WAVE_BYTES, WAVE_COUNT, Outbox, Waiting

NEVER_OVER = 10**30  # nanoseconds
STORED = PubAck(stream="SIGNALS", seq=1, is_duplicate=False)
DEAD = "deadletters.SIGNALS.steps.step.7"


class Server(FakeBroker):
    """Notes who is in flight; ``errors`` are raised one after the other before anything is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[BrokerError] = []
        self.in_flight: list[str] = []
        self.most_in_flight = 0
        self.ids: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.publish_answer = self._answer
        for stream in ("SIGNALS", "FEEDBACK"):
            self.answers[f"STREAM.INFO.{stream}"] = {"config": {"duplicate_window": NEVER_OVER}}

    async def _answer(self, subject: str, headers: dict[str, str]) -> PubAck:
        self.ids.append(headers["Nats-Msg-Id"])
        self.in_flight.append(headers["Nats-Msg-Id"])
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.in_flight.remove(headers["Nats-Msg-Id"])
        return STORED

    @property
    def conditions(self) -> list[str | None]:
        """The expected last sequences that were demanded."""
        return [entry[3].get("Nats-Expected-Last-Subject-Sequence") for entry in self.log if entry[0] == "publish"]


def make_outbox(
    server: FakeBroker,
    forget: Callable[[str], None] = lambda row_id: None,
    fetch: Callable[[str], OutboxRow | None] = lambda row_id: None,
) -> Outbox:
    """An outbox before it runs."""
    return Outbox(server, forget=forget, fetch=fetch)  # type: ignore[arg-type]


class Stage:
    """An outbox that runs."""

    def __init__(self) -> None:
        self.server = Server()
        self.forgotten: list[str] = []
        self.store: dict[str, OutboxRow] = {}
        self.outbox = make_outbox(self.server, self.forgotten.append, self.store.get)
        self.task = asyncio.create_task(self.outbox.run())

    def add(self, *rows: OutboxRow, on_stored: Callable[[], None] | None = None) -> None:
        for row in rows:
            self.outbox.enqueue(Waiting(row, on_stored))

    def load(self, *rows: OutboxRow) -> None:
        """Has the outbox take over rows that the store has."""
        self.store.update((row.id, row) for row in rows)
        self.outbox.load(row.entry for row in rows)


@contextlib.asynccontextmanager
async def staged() -> AsyncIterator[Stage]:
    """Runs an outbox for the time of a test."""
    stage = Stage()
    try:
        yield stage
        assert not stage.task.done()
    finally:
        await ended([stage.task])


async def emptied(stage: Stage) -> None:
    """Waits until everything is stored."""
    await wait_until(lambda: not stage.outbox.unsent_count, 5, what="every row is stored")


async def test_row_is_published_under_its_id_and_then_forgotten() -> None:
    """A row goes out with its headers and its id; once stored its deletion is asked for and its caller told."""
    async with staged() as stage:
        told: list[str] = []
        stage.add(make_outbox_row(3, headers={"A": "b"}), on_stored=lambda: told.append("stored"))
        stage.add(make_outbox_row(4))
        assert stage.outbox.unsent_count == 2
        await emptied(stage)
        headers = {"A": "b", "Nats-Msg-Id": "id-3"}
        assert stage.server.log[0] == ("publish", "signals.nudge.due", b"{}", headers)
        assert (stage.forgotten, told, stage.outbox.unsent_count) == (["id-3", "id-4"], ["stored"], 0)


async def test_lanes_leave_side_by_side_and_each_in_order() -> None:
    """Different lanes are in flight together, two rows of one lane never, and a lane keeps its commit order."""
    async with staged() as stage:
        rows = [make_outbox_row(n, lane=f"lane{n % 3}") for n in range(12)]
        stage.add(*rows)
        await emptied(stage)
        assert stage.server.most_in_flight == 3
        for lane in range(3):
            assert [i for i in stage.server.ids if int(i[3:]) % 3 == lane] == [f"id-{n}" for n in range(lane, 12, 3)]


async def test_one_lane_has_one_row_in_flight() -> None:
    """The second row of a lane leaves after the first one's confirmation."""
    async with staged() as stage:
        stage.server.gate.clear()
        stage.add(make_outbox_row(1), make_outbox_row(2))
        await wait_until(lambda: stage.server.in_flight == ["id-1"])
        stage.server.gate.set()
        await emptied(stage)
        assert (stage.server.ids, stage.server.most_in_flight) == (["id-1", "id-2"], 1)


async def test_waves_are_bounded() -> None:
    """However many lanes wait, only so many rows are in flight."""
    async with staged() as stage:
        stage.add(*(make_outbox_row(n, lane=f"lane{n}") for n in range(WAVE_COUNT + 10)))
        await emptied(stage)
        assert stage.server.most_in_flight == WAVE_COUNT
        assert set(stage.forgotten) == {f"id-{n}" for n in range(WAVE_COUNT + 10)}


@pytest.mark.parametrize(
    "error",
    [
        BrokerUnavailable("no answer"),
        ApiError("signals.nudge.due", 10077, "maximum messages exceeded"),
        BrokerError(""),
    ],
    ids=["unavailable", "stream-full", "too-large"],
)
async def test_row_that_fails_is_repeated_under_the_same_id_before_its_lane_goes_on(error: BrokerError) -> None:
    """A row without confirmation is sent again with its id, the one behind it waits, and the error is said."""
    async with staged() as stage:
        stage.server.errors = [error, error]
        stage.add(make_outbox_row(1), make_outbox_row(2))
        await wait_until(lambda: len(stage.server.ids) == 2)
        assert stage.outbox.error == str(error)
        assert stage.forgotten == []
        await emptied(stage)
        assert stage.server.ids == ["id-1", "id-1", "id-1", "id-2"]
        assert (stage.forgotten, stage.outbox.error) == (["id-1", "id-2"], None)


async def test_stuck_row_does_not_stop_other_lanes() -> None:
    """While one lane's first row is refused, the other lanes' rows leave."""
    async with staged() as stage:

        async def refuse_one(subject: str, headers: dict[str, str]) -> PubAck:
            if headers["Nats-Msg-Id"] == "id-1":
                raise ApiError(subject, 10077, "maximum messages exceeded")
            return STORED

        stage.server.publish_answer = refuse_one
        stage.add(make_outbox_row(1), make_outbox_row(2, lane="other"), make_outbox_row(3, lane="other"))
        await wait_until(lambda: stage.forgotten == ["id-2", "id-3"])
        assert stage.outbox.unsent_count == 1


async def test_nothing_is_sent_while_nats_is_away() -> None:
    """Rows wait for the connection."""
    async with staged() as stage:
        stage.server.connected.clear()
        stage.add(make_outbox_row(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stage.server.log == []
        stage.server.connected.set()
        await emptied(stage)


async def test_cancelled_outbox_keeps_what_is_not_confirmed() -> None:
    """A row in flight at the end is not forgotten, so that the next start sends it again."""
    stage = Stage()
    stage.server.gate.clear()
    stage.add(make_outbox_row(1))
    await wait_until(lambda: stage.server.in_flight)
    await ended([stage.task])
    assert (stage.forgotten, stage.outbox.unsent_count) == ([], 1)


def dead_row(row_id: str = "dead-7") -> OutboxRow:
    """A dead letter."""
    return make_outbox_row(1, id=row_id, subject=DEAD, lane=DEAD)


def stored_dead(row_id: str) -> StoredMessage:
    """What lies on the dead letter's subject already."""
    return StoredMessage(subject=DEAD, seq=40, ts=0, payload=b"", headers={"Nats-Msg-Id": row_id})


async def test_dead_letter_demands_an_empty_subject() -> None:
    """A dead letter is published on condition that its subject has no message yet."""
    async with staged() as stage:
        stage.add(dead_row())
        await emptied(stage)
        assert stage.server.conditions == ["0"]


async def test_dead_letter_that_is_there_already_counts_as_stored() -> None:
    """A mismatch whose message has the same id is our own, published before: it is not published twice."""
    async with staged() as stage:
        stage.server.errors = [ApiError(DEAD, WRONG_LAST_SEQUENCE, "wrong last sequence: 40")]
        stage.server.last = stored_dead("dead-7")
        stage.add(dead_row())
        await emptied(stage)
        assert (stage.server.conditions, stage.forgotten) == (["0"], ["dead-7"])


async def test_dead_letter_of_an_earlier_stream_is_followed_by_ours() -> None:
    """A mismatch with another id comes from an earlier creation of the stream: ours is published after it."""
    async with staged() as stage:
        stage.server.errors = [ApiError(DEAD, WRONG_LAST_SEQUENCE, "wrong last sequence: 40")]
        stage.server.last = stored_dead("another")
        stage.add(dead_row())
        await emptied(stage)
        assert (stage.server.conditions, stage.forgotten) == (["0", "40"], ["dead-7"])


async def test_dead_letter_refused_for_another_reason_is_repeated() -> None:
    """Any other refusal, or a look at the subject that fails, leads to the next try."""
    async with staged() as stage:
        stage.server.errors = [
            ApiError(DEAD, 10077, "maximum messages exceeded"),
            ApiError(DEAD, WRONG_LAST_SEQUENCE, "wrong last sequence: 40"),
        ]
        stage.add(dead_row())
        await emptied(stage)
        assert stage.server.conditions == ["0", "0", "0"]


async def test_loaded_rows_leave_first_and_once() -> None:
    """Rows of an earlier run are sent in their order before newer ones; what is known already is not taken twice."""
    async with staged() as stage:
        stage.load(make_outbox_row(5))
        stage.load(make_outbox_row(5), make_outbox_row(9))
        assert stage.outbox.unsent_count == 2
        await emptied(stage)
        assert stage.server.ids == ["id-5", "id-9"]


async def test_silent_stream_holds_up_no_other() -> None:
    """With more lanes stuck than a wave takes, the rows of other streams and dead letters leave all the same."""
    async with staged() as stage:

        async def refuse_feedback(subject: str, headers: dict[str, str]) -> PubAck:
            if subject.startswith("feedback."):
                raise BrokerUnavailable("nobody answers there")
            return STORED

        stage.server.publish_answer = refuse_feedback
        count = WAVE_COUNT + 50
        stage.add(*(make_outbox_row(n, lane=f"stuck{n}", subject="feedback.x") for n in range(count)))
        stage.add(make_outbox_row(count, lane="well"), make_outbox_row(count + 1, lane=DEAD, subject=DEAD))
        await wait_until(lambda: stage.outbox.unsent_count == count)
        assert stage.forgotten == [f"id-{count}", f"id-{count + 1}"]


async def test_outbox_is_settled_when_what_remains_was_tried_once_more() -> None:
    """A stop waits for what can be sent, and not for what can't."""
    async with staged() as stage:

        async def refuse(subject: str, headers: dict[str, str]) -> PubAck:
            raise ApiError(subject, 10077, "maximum messages exceeded")

        stage.server.publish_answer = refuse
        stage.add(make_outbox_row(1), make_outbox_row(2), make_outbox_row(3, lane="other"))
        await asyncio.wait_for(stage.outbox.settled(), 5)
        assert stage.outbox.unsent_count == 3
        assert set(stage.server.conditions) == {None} and len(stage.server.conditions) >= 2


async def test_stream_that_does_not_answer_holds_up_no_other() -> None:
    """While publishes to one stream wait for their answers, and then for its return, the other stream's rows leave."""
    async with staged() as stage:
        gate = asyncio.Event()

        async def hang_feedback(subject: str, headers: dict[str, str]) -> PubAck:
            if subject.startswith("feedback."):
                await gate.wait()
                raise BrokerUnavailable("no answer")
            return STORED

        stage.server.publish_answer = hang_feedback
        stage.add(*(make_outbox_row(n, lane=f"stuck{n}", subject="feedback.x") for n in range(WAVE_COUNT)))
        await wait_until(lambda: len(stage.server.log) == WAVE_COUNT)
        stage.add(make_outbox_row(500, lane="well"), make_outbox_row(501, lane="well"))
        await wait_until(lambda: stage.forgotten == ["id-500", "id-501"])
        assert stage.outbox.unsent_count == WAVE_COUNT
        gate.set()


async def test_silent_stream_is_asked_by_one_row_whether_it_is_back() -> None:
    """After a wave without any answer one row alone is tried; once that is stored, the others follow."""
    async with staged() as stage:
        stage.server.errors = [BrokerUnavailable("no answer")] * (WAVE_COUNT + 1)
        stage.add(*(make_outbox_row(n, lane=f"lane{n}") for n in range(WAVE_COUNT)))
        await emptied(stage)
        assert len(stage.server.ids) == WAVE_COUNT + 1 + WAVE_COUNT  # the wave, one that failed again, each stored


async def test_lane_keeps_its_order_across_streams() -> None:
    """A row waits for the one before it in its lane, also when that goes to a stream that is silent."""
    async with staged() as stage:
        stage.server.errors = [BrokerUnavailable("no answer")] * 2
        stage.add(make_outbox_row(1, subject="feedback.x"), make_outbox_row(2))
        await emptied(stage)
        assert stage.server.ids == ["id-1", "id-1", "id-1", "id-2"]


async def test_outbox_is_settled_when_a_stream_of_many_lanes_is_silent() -> None:
    """However many lanes wait for a silent stream, one try without answer tells for all of them."""
    async with staged() as stage:

        async def refuse(subject: str, headers: dict[str, str]) -> PubAck:
            raise BrokerUnavailable("no answer")

        stage.server.publish_answer = refuse
        stage.add(*(make_outbox_row(n, lane=f"lane{n}") for n in range(20 * WAVE_COUNT)))
        await asyncio.wait_for(stage.outbox.settled(), 5)
        assert stage.outbox.unsent_count == 20 * WAVE_COUNT


async def test_outbox_is_settled_without_a_connection() -> None:
    """While NATS is away nothing can be sent, so there is nothing to wait for."""
    async with staged() as stage:
        stage.server.connected.clear()
        stage.add(make_outbox_row(1))
        await asyncio.wait_for(stage.outbox.settled(), 5)
        assert stage.outbox.unsent_count == 1


async def test_stream_that_can_not_be_asked_puts_off_no_other_stream() -> None:
    """Rows in doubt of one stream, and dead letters, leave while another stream can't tell what it has."""
    async with staged() as stage:
        stage.server.answers["STREAM.INFO.SIGNALS"] = BrokerUnavailable("no answer")
        stage.load(
            make_outbox_row(1, lane="a"),
            make_outbox_row(2, lane="b", subject="feedback.x"),
            make_outbox_row(3, lane="c", subject=DEAD),
        )
        await wait_until(lambda: set(stage.forgotten) == {"id-2", "id-3"})
        assert (stage.outbox.unsent_count, stage.outbox.error) == (1, "no answer")


async def test_rows_beyond_the_bound_of_bytes_are_read_from_the_store_when_sent() -> None:
    """What is loaded, or comes while too much waits, is held without its payload and leaves whole all the same."""
    large = b"x" * (FULL_BYTES // 4)
    rows = [make_outbox_row(n, lane=f"lane{n}", payload=large) for n in range(6)]
    async with staged() as stage:
        stage.server.connected.clear()
        await asyncio.sleep(0)
        stage.load(*rows[:2])
        for row in rows[2:]:
            stage.store[row.id] = row
        waiting = [Waiting(row) for row in rows[2:]]
        for each in waiting:
            stage.outbox.enqueue(each)
        kept = [isinstance(each.row, OutboxRow) for each in waiting]
        assert kept == [True, True, False, False]  # 2 loaded + 2 = 4 quarters of the bound
        stage.server.connected.set()
        await emptied(stage)
        assert {len(entry[2]) for entry in stage.server.log if entry[0] == "publish"} == {len(large)}
        assert len(stage.forgotten) == 6


async def test_waves_are_bounded_in_bytes() -> None:
    """Large rows leave a few at a time."""
    async with staged() as stage:
        large = b"x" * (WAVE_BYTES // 2)
        stage.add(*(make_outbox_row(n, lane=f"lane{n}", payload=large) for n in range(6)))
        await emptied(stage)
        assert stage.server.most_in_flight == 2


async def test_row_that_another_process_has_sent_is_forgotten() -> None:
    """A row that is no longer in the store is stored in its stream: it is not sent."""
    async with staged() as stage:
        stage.outbox.load([make_outbox_row(1).entry])
        await emptied(stage)
        assert (stage.server.ids, stage.forgotten) == ([], ["id-1"])


async def test_row_that_can_not_be_read_waits() -> None:
    """A store that can't be read for a moment puts the row off."""
    async with staged() as stage:
        answers: list[OutboxRow | StoreError] = [StoreError(Path("state.db"), "broken"), make_outbox_row(1)]

        def fetch(row_id: str) -> OutboxRow:
            answer = answers.pop(0)
            if isinstance(answer, StoreError):
                raise answer
            return answer

        stage.outbox._fetch = fetch
        stage.outbox.load([make_outbox_row(1).entry])
        await emptied(stage)
        assert (stage.server.ids, answers) == (["id-1"], [])


def test_outbox_is_full_above_its_bound_of_bytes() -> None:
    """A few large rows count as many small ones."""
    outbox = make_outbox(FakeBroker())
    large = b"x" * (FULL_BYTES // 4)
    for n in range(4):
        outbox.enqueue(Waiting(make_outbox_row(n, payload=large)))
    assert not outbox.is_full
    outbox.enqueue(Waiting(make_outbox_row(5, payload=b"x")))
    assert outbox.is_full


def test_outbox_is_full_above_its_bound() -> None:
    """Beyond ten thousand rows workers should stop pulling."""
    outbox = make_outbox(FakeBroker())
    outbox.load(make_outbox_row(n).entry for n in range(FULL_COUNT))
    assert not outbox.is_full
    outbox.enqueue(Waiting(make_outbox_row(FULL_COUNT)))
    assert outbox.is_full


async def test_row_in_doubt_waits_while_its_stream_can_not_be_asked() -> None:
    """A row that may be stored already is not sent until the stream was asked; rows beyond doubt go on meanwhile."""
    async with staged() as stage:
        stage.server.answers["STREAM.INFO.SIGNALS"] = BrokerUnavailable("no answer")
        stage.load(make_outbox_row(1, lane="a"))
        stage.add(make_outbox_row(2, lane="b"))
        await wait_until(lambda: stage.forgotten == ["id-2"])
        assert (stage.server.ids, stage.outbox.error) == (["id-2"], "no answer")
        stage.server.answers["STREAM.INFO.SIGNALS"] = {"config": {"duplicate_window": NEVER_OVER}}
        await emptied(stage)
        assert stage.server.ids == ["id-2", "id-1"]


async def test_row_in_doubt_within_the_dedupe_window_is_sent_again_without_a_look_up() -> None:
    """While the stream remembers ids by itself nothing is read; a dead letter never needs it."""
    async with staged() as stage:
        stage.load(make_outbox_row(1, lane="a"), make_outbox_row(2, lane="b", subject=DEAD))
        await emptied(stage)
        asked = [entry[0] for entry in stage.server.log if entry[0] != "publish"]
        assert asked == ["STREAM.INFO.SIGNALS"]
