"""The way of a message on a real server: from the stream into a row, parked, published or given up."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, wait_until
from service_kit import (
    SUBJECT,
    Behaviour,
    Step,
    all_acked,
    api,
    client,
    count_of,
    expected,
    info,
    messages_of,
    payload,
    payloads,
    publish,
    rows_become,
    running_service,
    step_table,
    stream_is_there,
)

from models.errors import Reject, Retry
from streams.context import Context
from streams.policy import Policy


async def test_many_messages_are_applied_once_and_in_order_per_key(nats_server: NatsServer, tmp_path: Path) -> None:
    """2,000 messages over 50 keys, with handlers that take all sorts of times, leave 50 complete ordered rows."""

    async def dawdle(event: Step, ctx: Context) -> None:
        if event.n % 3:
            await asyncio.sleep(random.uniform(0, 0.01))

    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, tmp_path / "state", [step_table(dawdle)]),
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(50, 40))
        await rows_become(tmp_path / "state", expected(50, 40))
        await all_acked(nc)
        assert (await info(nc))["num_redelivered"] == 0


BAD = {
    "no-json": b"{not json",
    "missing-field": b'{"user_id": "user0"}',
    "wrong-type": b'{"user_id": "user0", "n": "one"}',
    "naive-time": b'{"user_id": "user0", "n": 1, "at": "2026-01-01T00:00:00"}',
    "not-utf8": b'{"user_id": "\xff\xfe", "n": 1}',
    "largest": b'{"user_id": "user0", "n": "' + b"x" * (1024 * 1024 - 16 * 1024 - 29) + b'"}',
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_undecodable_payload_becomes_one_dead_letter(bad: bytes, nats_server: NatsServer, tmp_path: Path) -> None:
    """A payload that does not fit its type is copied whole to its own dead-letter subject, once, and terminated."""
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, tmp_path / "state", [step_table()]) as running,
    ):
        await stream_is_there(nc)
        await publish(nc, [payload("user0", 0), bad, payload("user0", 1)], at_once=1)
        await rows_become(tmp_path / "state", {"user0": [0, 1]})
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        await all_acked(nc)
        await wait_until(lambda: running.consumer().ack_pending == 0, what="the next look sees it")
        await running.stop()
        [letter] = await messages_of(nc, "DEAD_LETTERS")
        assert (letter.subject, letter.data) == ("deadletters.SIGNALS.steps.step.2", bad)
        headers = letter.headers
        assert (headers["Tipstream-Stream"], headers["Tipstream-Sequence"]) == ("SIGNALS", "2")
        assert (headers["Tipstream-Subject"], headers["Tipstream-Handler"]) == (SUBJECT, "steps.step")
        assert headers["Tipstream-Error"].startswith("PayloadError: ")


async def test_failing_message_is_retried_in_order_while_other_keys_go_on(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """A message that fails twice holds its own lane back, in order, and no other one."""
    failures: list[int] = []
    others_are_done = asyncio.Event()

    async def fail_twice(event: Step, ctx: Context) -> None:
        if event.user_id == "user0" and event.n == 3 and len(failures) < 2:
            failures.append(event.n)
            if len(failures) == 2:
                await others_are_done.wait()
            raise ValueError("not yet")

    state = tmp_path / "state"
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [step_table(fail_twice)]) as running,
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(3, 10))
        await rows_become(state, expected(3, 10) | {"user0": [0, 1, 2]})
        await wait_until(lambda: running.consumer().parked == 7)
        others_are_done.set()
        await rows_become(state, expected(3, 10))
        await wait_until(lambda: running.consumer().parked == 0 and running.consumer().processed >= 30)
        assert (running.consumer().processed, running.consumer().errors) == (30, 2)
        assert await messages_of(nc, "DEAD_LETTERS") == []


async def test_failures_survive_a_restart_of_the_worker(nats_server: NatsServer, tmp_path: Path) -> None:
    """Two failures before a restart and one after it make three, and the third is the last."""
    attempts: list[int] = []
    is_stopping = asyncio.Event()

    async def fail(event: Step, ctx: Context) -> None:
        attempts.append(event.n)
        if len(attempts) == 2:
            await is_stopping.wait()  # a worker that stops runs nothing a third time
        raise ValueError("never")

    state = tmp_path / "state"
    policy = Policy(max_deliver=3, backoff_s=(0.01, 0.6))
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [step_table(fail, policy=policy)]) as running:
            await stream_is_there(nc)
            await publish(nc, [payload("user0", 0)])
            await wait_until(lambda: len(attempts) == 2)
            running.service.stop()
            is_stopping.set()
        async with running_service(nats_server.url, state, [step_table(fail, policy=policy)]) as running:
            await wait_until(lambda: running.consumer().dead_lettered == 1)
        [letter] = await messages_of(nc, "DEAD_LETTERS")
        assert letter.headers["Tipstream-Failures"] == "3"
        assert attempts == [0, 0, 0]


async def test_parked_lane_survives_a_restart_in_order(nats_server: NatsServer, tmp_path: Path) -> None:
    """What waits behind a failed message waits in the store, and runs in order in the next worker."""
    is_down = True

    async def need_dependency(event: Step, ctx: Context) -> None:
        if is_down:
            raise Retry("dependency is down")

    state = tmp_path / "state"
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [step_table(need_dependency)]) as running:
            await stream_is_there(nc)
            await publish(nc, payloads(2, 5))
            await wait_until(lambda: running.consumer().parked == 10)
            await all_acked(nc)
        is_down = False
        await publish(nc, [payload("user0", 5), payload("user1", 5)])
        async with running_service(nats_server.url, state, [step_table(need_dependency)]) as running:
            await rows_become(state, expected(2, 6))
            await wait_until(lambda: running.consumer().parked == 0)


async def test_retry_is_no_failure(nats_server: NatsServer, tmp_path: Path) -> None:
    """More Retry verdicts than NATS_MAX_DELIVER dead-letter nothing, and their own delay wins over the backoff."""
    runs: list[int] = []

    async def retry(event: Step, ctx: Context) -> None:
        runs.append(event.n)
        if len(runs) < 5:
            raise Retry("later", delay_s=0.01)

    state = tmp_path / "state"
    table = step_table(retry, policy=Policy(backoff_s=(3600,)))
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [table], max_deliver=2),
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(1, 2))
        await rows_become(state, expected(1, 2))
        assert runs == [0, 0, 0, 0, 0, 1]


class Stubborn(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def reject(event: Step, ctx: Context) -> None:
    """Rejects the second step."""
    if event.n == 1:
        raise Reject("never wanted")


async def fail(event: Step, ctx: Context) -> None:
    """Fails at the second step."""
    if event.n == 1:
        raise ValueError("broken")


async def hang(event: Step, ctx: Context) -> None:
    """Never ends with the second step."""
    if event.n == 1:
        await asyncio.Event().wait()


async def swallow_its_deadline(event: Step, ctx: Context) -> None:
    """Takes its deadline for an order to return."""
    if event.n == 1:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return


async def await_something_cancelled(event: Step, ctx: Context) -> None:
    """Waits for something that was cancelled."""
    if event.n == 1:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future


async def fail_without_text(event: Step, ctx: Context) -> None:
    """Fails with an error that can't be turned into text."""
    if event.n == 1:
        raise Stubborn


@pytest.mark.parametrize(
    ("behaviour", "failures", "error"),
    [
        pytest.param(reject, 1, "Reject: never wanted", id="reject"),
        pytest.param(fail, 3, "ValueError: broken", id="raises"),
        pytest.param(hang, 3, "TimeoutError: ran longer than 0.05 s", id="hangs"),
        pytest.param(swallow_its_deadline, 3, "TimeoutError: ran longer than 0.05 s", id="swallows-its-deadline"),
        pytest.param(await_something_cancelled, 3, "RuntimeError: ", id="awaits-something-cancelled"),
        pytest.param(fail_without_text, 3, "RuntimeError: a Stubborn", id="error-without-text"),
    ],
)
async def test_hopeless_message_is_given_up_after_exactly_its_failures(
    behaviour: Behaviour, failures: int, error: str, nats_server: NatsServer, tmp_path: Path
) -> None:
    """After max_deliver failures (one for a Reject) there is one dead letter, and the lane goes on without it."""
    state = tmp_path / "state"
    policy = Policy(backoff_s=(0.01,), timeout_s=0.05)
    table = step_table(behaviour, policy=policy, concurrency=1)
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [table], max_deliver=3) as running,
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(1, 3), at_once=1)
        await rows_become(state, {"user0": [0, 2]})
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        await all_acked(nc)
        await running.stop()
        [letter] = await messages_of(nc, "DEAD_LETTERS")
        assert (letter.subject, letter.data) == ("deadletters.SIGNALS.steps.step.2", payload("user0", 1))
        assert letter.headers["Tipstream-Failures"] == str(failures)
        assert letter.headers["Tipstream-Error"].startswith(error)


async def test_published_events_leave_once_and_in_order_per_key(nats_server: NatsServer, tmp_path: Path) -> None:
    """Each applied message's events are in the stream once, in the order of its key's messages."""

    async def echo(event: Step, ctx: Context) -> None:
        ctx.publish("signals.echo", {"user_id": event.user_id, "n": 2 * event.n})
        ctx.publish("signals.echo", {"user_id": event.user_id, "n": 2 * event.n + 1})

    state = tmp_path / "state"
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [step_table(echo), step_table(name="echoes", subject="signals.echo")]),
    ):
        await stream_is_there(nc)
        await publish(nc, payloads(5, 20))
        await rows_become(state, expected(5, 40), table="echoes")
        echoes = await messages_of(nc, "SIGNALS", "signals.echo")
        assert len(echoes) == 5 * 20 * 2


async def test_effects_of_a_failed_attempt_are_dropped(nats_server: NatsServer, tmp_path: Path) -> None:
    """An attempt that publishes and then fails has published nothing."""
    attempts: list[int] = []

    async def publish_then_fail(event: Step, ctx: Context) -> None:
        ctx.publish("signals.echo", {"attempt": len(attempts)})
        attempts.append(event.n)
        if len(attempts) == 1:
            raise ValueError("after the publish")

    state = tmp_path / "state"
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [step_table(publish_then_fail)]):
            await stream_is_there(nc)
            await publish(nc, payloads(1, 1))
            await rows_become(state, expected(1, 1))
        [echo] = await messages_of(nc, "SIGNALS", "signals.echo")
        assert echo.data == b'{"attempt":1}'


async def test_message_given_up_is_pending_until_its_dead_letter_is_stored(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """While the dead-letter stream takes nothing, the message stays unacked, and alive on the server."""
    state = tmp_path / "state"

    async def reject(event: Step, ctx: Context) -> None:
        raise Reject("never")

    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [step_table(reject, ack_wait_s=1)]) as running,
    ):
        await stream_is_there(nc, "DEAD_LETTERS")
        await running.is_ok()
        config = (await api(nc, "STREAM.INFO.DEAD_LETTERS"))["config"]
        await api(nc, "STREAM.UPDATE.DEAD_LETTERS", config | {"max_msgs": 1})
        await nc.jetstream().publish("deadletters.other", b"")  # full
        await publish(nc, payloads(1, 3))
        await running.says("events wait to be published")
        seen_at = asyncio.get_running_loop().time()
        await wait_until(lambda: asyncio.get_running_loop().time() > seen_at + 2.5, what="ack_wait twice over")
        found = await info(nc)
        assert (found["num_ack_pending"], found["ack_floor"]["stream_seq"]) == (3, 0)
        await api(nc, "STREAM.UPDATE.DEAD_LETTERS", config)
        await all_acked(nc)
        assert await count_of(nc, "DEAD_LETTERS", "deadletters.SIGNALS.>") == 3


async def test_event_that_somebody_else_answers_is_published_all_the_same(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """A client that replies to everything on the subject is no acknowledgement, and does not end the worker."""
    state = tmp_path / "state"

    async def echo(event: Step, ctx: Context) -> None:
        ctx.publish("feedback.echo", {"n": event.n})

    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [step_table(echo)]) as running:
        await stream_is_there(nc, "DEAD_LETTERS")

        heard = []

        async def answer(message: Any) -> None:
            await nc.publish(message.reply, b"hello")
            heard.append(message)

        meddler = await nc.subscribe("feedback.>", cb=answer)
        await publish(nc, payloads(1, 5))
        await rows_become(state, expected(1, 5))
        await wait_until(lambda: len(heard) >= 5)
        await meddler.unsubscribe()

        async def all_are_published() -> bool:
            return await count_of(nc, "FEEDBACK", "feedback.echo") >= 5

        await wait_until(all_are_published)
        await wait_until(lambda: bool(running.service._owned and not running.service._owned.outbox.unsent_count))
        assert await count_of(nc, "FEEDBACK", "feedback.echo") == 5
        assert not running.task.done()


async def test_parked_message_whose_handler_was_removed_becomes_a_dead_letter(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its key is not blocked: later messages of it are applied, and the log quotes nothing that a user wrote."""
    state = tmp_path / "state"

    async def wait(event: Step, ctx: Context) -> None:
        raise Retry("hunter2", delay_s=0.2)

    both = step_table()
    both.on("signals.gone", policy=Policy(backoff_s=(0.05,)))(named_gone(wait))
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [both]) as running:
            await stream_is_there(nc, "DEAD_LETTERS")
            await publish(nc, [payload("user0", 7)], subject="signals.gone")
            await wait_until(lambda: running.consumer().parked == 1)
        assert "hunter2" not in str([record.__dict__.get("fields") for record in caplog.records])
        async with running_service(nats_server.url, state, [step_table()]) as running:
            await publish(nc, payloads(1, 3))
            await rows_become(state, expected(1, 3))
            await wait_until(lambda: running.consumer().parked == 0)
            await all_acked(nc)
            letter = await nc.jetstream().get_last_msg("DEAD_LETTERS", "deadletters.SIGNALS.steps.removed.1")
            assert (letter.headers or {})["Tipstream-Error"] == "PayloadError: no handler takes 'signals.gone' any more"


def named_gone(function: Behaviour) -> Behaviour:
    """The function as a handler named ``gone``."""

    async def gone(event: Step, ctx: Context) -> None:
        await function(event, ctx)

    return gone
