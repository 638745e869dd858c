"""The intake of one durable, with a test in the server's place."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from consume_kit import SPEC, FakeBroker, FakeInbox, ended
from harness import wait_until
from streams_kit import CREATED, make_floor, ts_of

from models.errors import ApiError, BrokerUnavailable
from state.store import Floor
from streams.broker import CONSUMER_NOT_FOUND, STREAM_NOT_FOUND
from streams.consumer import MISSED_AFTER_S, Attached, Consumer
from streams.deliveries import StoredMessage
from streams.message import Message
from streams.topology import consumer_config

INFO = "CONSUMER.INFO.SIGNALS.tipstream-signals"
RESET = "CONSUMER.RESET.SIGNALS.tipstream-signals"
NO_STREAM = ApiError("STREAM.INFO", STREAM_NOT_FOUND, "stream not found")
OTHERS = {"config": consumer_config(SPEC, store_id="other")}
MINE = {"config": consumer_config(SPEC, store_id="mine"), "delivered": {"stream_seq": 9}}


def stream(last: int = 0, *, first: int = 1, created: str = CREATED) -> dict[str, Any]:
    """What the server says of a stream."""
    return {"created": created, "state": {"first_seq": first, "last_seq": last, "messages": last}}


class FakeSink:
    """Takes everything, and holds what it took until it is told that it is done."""

    def __init__(self, broker: FakeBroker, at: Floor | None = None) -> None:
        self._broker = broker
        self.floor = at
        self.lost: str | None = None
        self.held: list[int] = []
        self.found: list[Attached] = []
        self.takes_notes = True

    async def attached(self, found: Attached) -> bool:
        self.found.append(found)
        self._broker.log.append(("attached", found.floor.seq))
        self.floor = found.floor
        self.held.clear()
        return self.takes_notes

    def deliver(self, message: Message) -> None:
        self.held.append(message.seq)

    def room(self) -> int:
        return 1000 - len(self.held)


class Stage:
    """A consumer that runs, between a fake server and a fake sink."""

    def __init__(self, broker: FakeBroker, sink: FakeSink) -> None:
        self.broker, self.sink = broker, sink
        self.consumer = Consumer(broker, SPEC, store_id="mine", sink=sink)  # type: ignore[arg-type]

    @property
    def inbox(self) -> FakeInbox:
        return self.broker.inboxes[-1]

    async def attached(self, times: int = 1) -> FakeInbox:
        """Waits until it has attached so many times and has asked for messages."""
        await wait_until(lambda: self.consumer.attach_count >= times, 5, what=f"attach {times}")
        return self.inbox


@contextlib.asynccontextmanager
async def staged(at: Floor | None = None, broker: FakeBroker | None = None) -> AsyncIterator[Stage]:
    """Runs a consumer over a store at ``at``, with a server that answers well unless ``broker`` says otherwise."""
    broker = broker or FakeBroker()
    broker.answers = {"STREAM.INFO.SIGNALS": stream(at.seq if at else 0), INFO: MINE} | broker.answers
    if at:
        broker.stored[at.seq] = StoredMessage(subject="s", seq=at.seq, ts=at.ts, payload=b"", headers={})
    stage = Stage(broker, FakeSink(broker, at))
    task = asyncio.create_task(stage.consumer.run())
    try:
        yield stage
        assert not task.done()
    finally:
        await ended([task])


async def test_attach_checks_then_resets_after_the_floor_then_pulls() -> None:
    """An attach asks for the stream, then the durable, restarts the sink, resets to floor + 1, subscribes and pulls."""
    async with staged(make_floor(7)) as stage:
        await stage.attached()
        assert stage.broker.log == [
            ("STREAM.INFO.SIGNALS", None),
            (INFO, None),
            ("attached", 7),
            (RESET, {"seq": 8}),
            ("subscribe",),
            ("pull", 1000, "inbox0"),
        ]


async def test_first_attach_creates_the_durable_and_starts_at_the_beginning() -> None:
    """Without a floor the stream's creation is noted and the missing durable is created, then reset to 1."""
    broker = FakeBroker({INFO: ApiError("", CONSUMER_NOT_FOUND, "no")})
    broker.answers["CONSUMER.CREATE.SIGNALS.tipstream-signals"] = MINE
    async with staged(broker=broker) as stage:
        await stage.attached()
        assert stage.sink.floor == make_floor(0)
        assert broker.requests(RESET) == [{"seq": 1}]
        assert broker.requests("CONSUMER.CREATE")[0]["action"] == "create"


async def test_attach_to_an_old_server_makes_the_durable_anew() -> None:
    """A server before 2.14 knows no reset: a new durable that starts after the floor does the same."""
    broker = FakeBroker()
    broker.server_version = (2, 13, 9)
    async with staged(make_floor(7), broker) as stage:
        await stage.attached()
        assert broker.requests(RESET) == []
        assert len(broker.requests("CONSUMER.DELETE")) == 1
        config = broker.requests("CONSUMER.CREATE")[0]["config"]
        assert (config["deliver_policy"], config["opt_start_seq"]) == ("by_start_sequence", 8)


async def test_gap_in_the_deliveries_attaches_anew() -> None:
    """A delivery that is not the next one is not dispatched, nor what follows it, and the next attach gets them all."""
    async with staged() as stage:
        inbox = await stage.attached()
        inbox.deliver(1, 1)
        inbox.deliver(3, 3)
        inbox.deliver(2, 2)
        assert stage.sink.held == [1]
        assert await stage.attached(2) is not inbox
        assert inbox.is_closed
        stage.inbox.deliver(1, 1)
        assert stage.sink.held == [1]


async def test_messages_and_statuses_of_an_earlier_attach_are_ignored() -> None:
    """What still comes to the old inbox neither reaches the sink nor breaks the new attach off."""
    async with staged() as stage:
        old = await stage.attached()
        stage.broker.listeners[0]()
        await stage.attached(2)
        old.deliver(1, 1)
        old.status(409)
        stage.inbox.deliver(1, 1)
        assert stage.sink.held == [1]
        assert stage.broker.pulls() == [1000, 1000]


@pytest.mark.parametrize("code", [409, 503, 400, 423])
async def test_status_that_ends_the_pulls_attaches_anew(code: int) -> None:
    """Any status but a sign of life or the end of a request leads to the next attach, with its words as the reason."""
    async with staged() as stage:
        inbox = await stage.attached()
        inbox.status(code)
        assert stage.consumer.reason == f"the server said {code} said so"
        await stage.attached(2)


async def test_reconnect_attaches_anew() -> None:
    """A connection that was made anew leads to the next attach."""
    async with staged() as stage:
        await stage.attached()
        stage.broker.listeners[0]()
        await stage.attached(2)


async def test_missed_heartbeats_attach_anew() -> None:
    """Requests that nothing answers, no message and no heartbeat, lead to the next attach."""
    async with staged() as stage:
        await stage.attached()
        await stage.attached(2)
        assert stage.consumer.attach_count == 2


@pytest.mark.parametrize("still_s", [0.0, MISSED_AFTER_S + 0.3], ids=["loop-turns", "loop-stood-still"])
async def test_heartbeats_keep_an_idle_attach(still_s: float) -> None:
    """A status 100 is a sign of life, though a loop that stood still hears it late: nothing counts as missed."""
    async with staged() as stage:
        inbox = await stage.attached()
        beats = 0

        def beat() -> bool:
            nonlocal beats
            beats += 1
            inbox.status(100)
            time.sleep(still_s if beats == 2 else 0)
            return beats > 16

        await wait_until(beat, poll_s=0.1)
        assert stage.consumer.attach_count == 1


@pytest.mark.parametrize("code", [404, 408])
async def test_ended_request_is_asked_for_again(code: int) -> None:
    """The end of a request gives back what it still asked for, and nothing more, to the next request."""
    async with staged() as stage:
        inbox = await stage.attached()
        inbox.status(code, pending=400)
        await wait_until(lambda: len(stage.broker.pulls()) == 2)
        assert stage.broker.pulls() == [1000, 400]
        assert stage.consumer.attach_count == 1


async def test_pulls_never_ask_for_more_than_there_is_room() -> None:
    """What is asked for and what is held never exceed the room, and a request waits until a quarter of it is free."""
    async with staged() as stage:
        inbox = await stage.attached()
        for seq in range(1, 301):
            inbox.deliver(seq, seq)
        await stage.consumer.top_up()
        assert stage.broker.pulls() == [1000]  # 700 asked for + 300 held = 1000
        del stage.sink.held[:249]
        await stage.consumer.top_up()
        assert stage.broker.pulls() == [1000]
        del stage.sink.held[:1]
        await stage.consumer.top_up()
        assert stage.broker.pulls() == [1000, 250]  # 950 asked for + 50 held = 1000


async def test_pull_that_can_not_be_sent_attaches_anew() -> None:
    """A request that the connection does not take is no request: the attach is given up."""
    broker = FakeBroker()
    broker.takes_sends = False
    async with staged(broker=broker) as stage:
        await stage.attached()
        assert stage.consumer.reason == "can't send a pull request"
        broker.takes_sends = True
        await stage.attached(2)
        assert broker.pulls()


async def test_attaches_that_fail_at_once_wait_longer_each_time() -> None:
    """A server that ends every pull at once is not asked in a busy loop, and health has its words all the time."""
    async with staged() as stage:
        seen: set[int] = set()

        def refuse_every_pull() -> str | None:
            count = stage.consumer.attach_count
            if count and count not in seen:
                seen.add(count)
                stage.inbox.status(409)
            return stage.consumer.detached_reason

        await wait_until(refuse_every_pull, 3, poll_s=0.001)
        assert stage.consumer.detached_reason == "no deliveries: the server said 409 said so"
        assert len(seen) < 10


async def test_detached_reason_waits_for_a_quick_attach() -> None:
    """A break that the next attach heals at once never shows; one that lasts does."""
    async with staged() as stage:
        inbox = await stage.attached()
        inbox.deliver(1, 1)
        assert stage.consumer.reason is None
        stage.broker.connected.clear()
        stage.consumer.break_off("reconnected")
        stage.consumer.break_off("something later")
        assert stage.consumer.detached_reason is None
        await wait_until(lambda: stage.consumer.detached_reason)
        assert stage.consumer.detached_reason == "no deliveries: reconnected"


async def test_detached_reason_ends_with_a_first_attach_however_long_that_took() -> None:
    """A start that took its time is over once deliveries can come, before the first of them has."""
    async with staged(broker=FakeBroker({RESET: BrokerUnavailable("no answer")})) as stage:
        await wait_until(lambda: stage.consumer.detached_reason == "no deliveries: can't attach: no answer")
        stage.broker.answers[RESET] = {}
        await wait_until(lambda: stage.consumer.attach_count, poll_s=0)
        assert stage.consumer.detached_reason is None


@pytest.mark.parametrize(
    ("answers", "at", "words"),
    [
        pytest.param({INFO: OTHERS}, None, "belongs to store other", id="other-store"),
        pytest.param({INFO: {"config": {**MINE["config"], "max_deliver": 3}}}, None, "max_deliver 3", id="danger"),
        pytest.param({"STREAM.INFO.SIGNALS": NO_STREAM}, make_floor(3), "stream SIGNALS is gone", id="gone"),
        pytest.param({"STREAM.INFO.SIGNALS": stream(2)}, make_floor(3), "it ends at sequence 2", id="truncated"),
        pytest.param(
            {"STREAM.INFO.SIGNALS": stream(9, created="2027")}, make_floor(3), "created at 2027", id="recreated"
        ),
    ],
)
async def test_attach_is_refused_before_anything_changes(answers: dict[str, Any], at: Floor | None, words: str) -> None:
    """A stream or durable that is not the one that the store knows is not touched, and the reason names it."""
    async with staged(at, FakeBroker(answers)) as stage:
        await wait_until(lambda: stage.consumer.is_refused)
        assert words in (stage.consumer.reason or "")
        assert not any(entry[0] in ("restart", RESET, "subscribe", "pull") for entry in stage.broker.log)


async def test_refused_attach_is_tried_again_until_the_reason_is_gone() -> None:
    """A refused consumer tries again by itself, and the attach that goes through ends the refusal."""
    async with staged(broker=FakeBroker({INFO: OTHERS})) as stage:
        await wait_until(lambda: stage.consumer.is_refused)
        stage.broker.answers[INFO] = MINE
        await stage.attached()
        assert not stage.consumer.is_refused


async def test_other_message_at_the_floor_is_refused() -> None:
    """The message at the floor must still have its timestamp, or the stream is not the one that was read."""
    broker = FakeBroker()
    async with staged(make_floor(3), broker) as stage:
        broker.stored[3] = StoredMessage(subject="s", seq=3, ts=ts_of(4), payload=b"", headers={})
        await wait_until(lambda: stage.consumer.is_refused)
        assert "the message at sequence 3 is another one" in (stage.consumer.reason or "")


async def test_sink_that_saw_a_loss_is_not_attached_again() -> None:
    """A loss that only a delivery has shown is a refusal, too."""
    async with staged() as stage:
        await stage.attached()
        stage.sink.lost = "sequence 1 came again"
        stage.consumer.break_off(stage.sink.lost)
        await wait_until(lambda: stage.consumer.is_refused)
        assert stage.consumer.reason == "sequence 1 came again"


async def test_missing_stream_that_was_never_read_is_waited_for() -> None:
    """Before the first attach a missing stream is no loss: the consumer waits for it."""
    async with staged(broker=FakeBroker({"STREAM.INFO.SIGNALS": NO_STREAM})) as stage:
        await wait_until(lambda: stage.consumer.reason != "not attached yet")
        assert "can't attach: stream SIGNALS is missing: 'streams apply'" in (stage.consumer.reason or "")
        assert not stage.consumer.is_refused
        stage.broker.answers["STREAM.INFO.SIGNALS"] = stream()
        await stage.attached()


async def test_unanswered_attach_is_tried_again() -> None:
    """A server that does not answer, or answers with an error, gets the next attempt a little later."""
    async with staged(broker=FakeBroker({RESET: BrokerUnavailable("no answer")})) as stage:
        await wait_until(lambda: stage.consumer.reason == "can't attach: no answer")
        stage.broker.answers[RESET] = ApiError("RESET", 500, "not now")
        await wait_until(lambda: stage.consumer.reason == "can't attach: RESET: not now (500)")
        stage.broker.answers[RESET] = {}
        await stage.attached()


async def test_removed_messages_are_said_once_per_attach(caplog: pytest.LogCaptureFixture) -> None:
    """Messages that retention took before they were read are an error in the log, with their sequences."""
    broker = FakeBroker({"STREAM.INFO.SIGNALS": stream(20, first=11)})
    async with staged(make_floor(3), broker) as stage:
        await stage.attached()
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.__dict__["fields"] == {"stream": "SIGNALS", "from_seq": 4, "to_seq": 10}


async def test_hold_detaches_until_resume() -> None:
    """Held, nothing is delivered and nothing attached; resumed, the next attach follows."""
    async with staged() as stage:
        inbox = await stage.attached()
        stage.consumer.hold("the disk is full")
        inbox.deliver(1, 1)
        await wait_until(lambda: stage.consumer.detached_reason == "no deliveries: the disk is full")
        assert (stage.sink.held, stage.consumer.attach_count) == ([], 1)
        stage.consumer.resume()
        await stage.attached(2)


async def test_hold_while_nats_is_away_outlasts_the_reconnect() -> None:
    """A hold that comes while the consumer waits for the connection is not forgotten by the next attach."""
    async with staged() as stage:
        await stage.attached()
        stage.broker.connected.clear()
        stage.consumer.break_off("reconnected")
        await asyncio.sleep(0)
        await wait_until(lambda: stage.consumer.detached_reason)
        stage.consumer.hold("the disk is full")
        stage.broker.connected.set()
        attempts = len(stage.broker.log)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(stage.broker.log) == attempts
        stage.consumer.resume()
        await stage.attached(2)


@pytest.mark.parametrize("subject", ["STREAM.INFO.SIGNALS", RESET])
async def test_hold_during_an_attach_delivers_nothing(subject: str) -> None:
    """A hold in the middle of an attach pulls nothing until the consumer is resumed."""
    holding = asyncio.Event()

    async def hold_here(body: object) -> Any:
        if not holding.is_set():
            holding.set()
            stage.consumer.hold("the disk is full")
        return stream()

    async with staged(broker=FakeBroker({subject: hold_here})) as stage:
        await stage.attached()
        assert stage.broker.pulls() == []
        await wait_until(lambda: stage.consumer.detached_reason == "no deliveries: the disk is full")
        assert stage.consumer.attach_count == 1
        stage.consumer.resume()
        await stage.attached(2)
        assert stage.broker.pulls() == [1000]


async def test_hold_while_the_old_inbox_closes_is_not_overlooked() -> None:
    """A hold in the first moment of the next attach counts for that attach."""
    async with staged() as stage:
        inbox = await stage.attached()
        inbox.on_close = lambda: stage.consumer.hold("the disk is full")
        stage.consumer.break_off("reconnected")
        await wait_until(lambda: inbox.is_closed)
        for _ in range(20):
            await asyncio.sleep(0)
        stage.inbox.deliver(1, 1)
        assert (stage.broker.pulls(), stage.sink.held) == ([1000], [])


async def test_break_off_during_an_attach_attaches_anew() -> None:
    """A reconnect in the middle of an attach makes that attach void: the next one follows before any delivery."""
    broken = asyncio.Event()

    async def break_here(body: object) -> Any:
        if not broken.is_set():
            broken.set()
            stage.broker.listeners[0]()
        return {}

    async with staged(broker=FakeBroker({RESET: break_here})) as stage:
        inbox = await stage.attached()
        inbox.deliver(1, 1)
        assert stage.sink.held == []
        await stage.attached(2)
        assert stage.broker.pulls() == [1000]


async def test_cancellation_in_the_moment_of_a_break_ends_the_consumer() -> None:
    """A stop in the same turn of the loop as a break ends the consumer instead of being lost."""
    async with staged() as stage:
        await stage.attached()
        stage.consumer.hold("the disk is full")  # and the stage cancels it now


async def test_stop_intake_drains_and_asks_for_nothing_more() -> None:
    """Stopping waits for what the server has sent; no request and no attach follows."""
    async with staged() as stage:
        inbox = await stage.attached()
        await stage.consumer.stop_intake()
        assert inbox.is_drained
        stage.broker.listeners[0]()
        await stage.consumer.top_up()
        await wait_until(lambda: stage.consumer.reason == "reconnected")
        for _ in range(10):
            await asyncio.sleep(0)
        assert (stage.broker.pulls(), stage.consumer.attach_count) == ([1000], 1)
        assert stage.consumer.detached_reason is None  # on purpose, so nothing to complain of
        await stage.consumer.stop_intake()


async def test_stop_intake_during_an_attach_pulls_nothing() -> None:
    """A stop in the middle of an attach lets it end without a request, so that nothing is delivered any more."""

    async def stop_here(body: object) -> Any:
        await stage.consumer.stop_intake()
        return {}

    async with staged(broker=FakeBroker({RESET: stop_here})) as stage:
        await stage.attached()
        await stage.consumer.top_up()
        assert stage.broker.pulls() == []


@pytest.mark.parametrize(("ack_pending", "resets"), [(0, [1]), (2, [1, 8])], ids=["all-acked", "some-lost"])
async def test_deliveries_lost_during_the_stop_are_handed_back(ack_pending: int, resets: list[int]) -> None:
    """What the server still awaits after everything was acked never came: the durable goes back to the floor."""
    async with staged() as stage:
        await stage.attached()
        await stage.consumer.stop_intake()
        stage.sink.floor = make_floor(7)
        stage.broker.answers[INFO] = MINE | {"num_ack_pending": ack_pending}
        await stage.consumer.hand_back()
        assert [body["seq"] for body in stage.broker.requests(RESET)] == resets


async def test_durable_that_is_not_attached_is_not_handed_back() -> None:
    """A durable that was refused, or that broke off, is left as it is; a server that does not answer is no error."""
    async with staged(broker=FakeBroker({INFO: OTHERS})) as stage:
        await wait_until(lambda: stage.consumer.is_refused)
        await stage.consumer.hand_back()
        assert len(stage.broker.requests("CONSUMER.INFO")) == 1
    async with staged() as stage:
        await stage.attached()
        await stage.consumer.stop_intake()
        stage.broker.answers[INFO] = BrokerUnavailable("no answer")
        await stage.consumer.hand_back()
        asked = len(stage.broker.log)
        stage.consumer.break_off("reconnected")
        await stage.consumer.hand_back()
        assert len(stage.broker.log) == asked
