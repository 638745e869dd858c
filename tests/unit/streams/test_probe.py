"""What the probe remembers of the server, as a test plays it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from consume_kit import SPEC, FakeBroker, ended
from harness import wait_until

from models.errors import ApiError, BrokerUnavailable
from streams.broker import CONSUMER_NOT_FOUND
from streams.probe import Probe
from streams.topology import STREAMS, StreamSpec, consumer_config, stream_config

INFO = f"CONSUMER.INFO.SIGNALS.{SPEC.durable}"


def found(**config: object) -> dict[str, Any]:
    """The durable as declared, except for ``config``."""
    return {"num_pending": 3, "config": consumer_config(SPEC, store_id="mine") | config}


def state(stream: StreamSpec, messages: int, subjects: dict[str, int], **config: object) -> Any:
    """How a stream answers, with and without a filter on subjects."""
    configured = stream_config(stream, replicas=1, max_payload_bytes=1024 * 1024) | config

    async def answer(body: dict[str, str] | None) -> dict[str, Any]:
        wanted = body["subjects_filter"] if body else None
        counts = {subject: count for subject, count in subjects.items() if subject == wanted}
        return {"config": configured, "state": {"messages": messages, "subjects": counts or None}}

    return answer


@contextlib.asynccontextmanager
async def probing(**answers: Any) -> AsyncIterator[tuple[Probe, FakeBroker]]:
    """Runs a probe of one durable over all streams."""
    broker = FakeBroker({INFO: found()} | {f"STREAM.INFO.{spec.name}": state(spec, 0, {}) for spec in STREAMS})
    broker.answers.update(answers)
    probe = Probe(broker, [SPEC], STREAMS, replicas=1)  # type: ignore[arg-type]
    task = asyncio.create_task(probe.run())
    try:
        yield probe, broker
        assert not task.done()
    finally:
        await ended([task])


async def test_probe_remembers_what_it_saw_and_when() -> None:
    """A durable that is as declared is seen with its counts, its age grows from there, and it has no drift."""
    async with probing() as (probe, _):
        sight = probe.sights[SPEC.durable]
        assert (sight.at, sight.age_s, sight.info) == (None, None, None)
        await wait_until(lambda: sight.at)
        assert sight.info["num_pending"] == 3
        assert sight.drift == ()
        assert 0 <= (sight.age_s or 0) < 5


async def test_probe_names_what_differs_from_the_declaration() -> None:
    """A setting changed by hand is named with both values; another store's metadata is no drift."""
    async with probing(**{INFO: found(ack_wait=7, metadata={})}) as (probe, _):
        sight = probe.sights[SPEC.durable]
        await wait_until(lambda: sight.at)
        assert sight.drift == ("ack_wait: 7 instead of 30000000000",)


async def test_probe_sees_that_a_durable_is_gone() -> None:
    """A server that says that there is no such durable was seen, without information."""
    async with probing(**{INFO: ApiError("", CONSUMER_NOT_FOUND, "consumer not found")}) as (probe, _):
        sight = probe.sights[SPEC.durable]
        await wait_until(lambda: sight.at)
        assert sight.info is None


async def test_unanswered_look_keeps_the_old_sight_and_its_age() -> None:
    """Without an answer the last sight stays, with its time, and the next look comes all the same."""
    async with probing() as (probe, broker):
        sight = probe.sights[SPEC.durable]
        await wait_until(lambda: sight.at)
        seen_at = sight.at
        broker.answers[INFO] = BrokerUnavailable("no answer")
        looks = len(broker.requests("CONSUMER.INFO"))
        await wait_until(lambda: len(broker.requests("CONSUMER.INFO")) > looks)
        assert (sight.at, sight.info["num_pending"]) == (seen_at, 3)


async def test_messages_that_no_handler_matches_are_counted() -> None:
    """What the public streams hold beyond the handled subjects is counted, 10 - 4 and 2 - 0; a log needs no handler."""
    signals, feedback, timers, dead_letters, decisions = STREAMS
    answers = {
        "STREAM.INFO.SIGNALS": state(signals, 10, {"signals.step": 4, "signals.odd": 6}),
        "STREAM.INFO.FEEDBACK": state(feedback, 2, {}),
        "STREAM.INFO.TIMERS": state(timers, 100, {}),
        "STREAM.INFO.DEAD_LETTERS": state(dead_letters, 100, {}),
        "STREAM.INFO.DECISIONS": state(decisions, 100, {}),
    }
    async with probing(**answers) as (probe, _):
        await wait_until(lambda: probe.unhandled)
        assert probe.unhandled == 8


async def test_probe_names_what_differs_in_a_stream() -> None:
    """A stream that somebody has changed is named with both values; one that is as declared has none."""
    async with probing(**{"STREAM.INFO.SIGNALS": state(STREAMS[0], 0, {}, discard="old")}) as (probe, _):
        await wait_until(lambda: len(probe.stream_drift) == 5)
        assert probe.stream_drift == {
            "SIGNALS": ("discard: 'old' instead of 'new'",),
            "FEEDBACK": (),
            "TIMERS": (),
            "DEAD_LETTERS": (),
            "DECISIONS": (),
        }


async def test_look_at_the_streams_that_fails_keeps_the_last_one() -> None:
    """A stream that can't be asked leaves the count as it was, and the next look comes all the same."""
    async with probing(**{"STREAM.INFO.SIGNALS": state(STREAMS[0], 5, {})}) as (probe, broker):
        await wait_until(lambda: probe.unhandled == 5)
        broker.answers["STREAM.INFO.SIGNALS"] = ApiError("", 500, "not now")
        looks = len(broker.requests("STREAM.INFO"))
        await wait_until(lambda: len(broker.requests("STREAM.INFO")) > looks)
        await asyncio.sleep(0)
        assert probe.unhandled == 5


async def test_probe_waits_for_the_connection() -> None:
    """While NATS is away nothing is asked."""
    async with probing() as (probe, broker):
        broker.connected.clear()
        broker.log.clear()
        for _ in range(5):
            await asyncio.sleep(0)
        assert broker.log == []
        broker.connected.set()
        await wait_until(lambda: probe.sights[SPEC.durable].at)
