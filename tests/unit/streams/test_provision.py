"""Creation, plan and application of streams and durables, with a test in the server's place."""

from typing import Any

import attrs
import pytest
from consume_kit import SPEC, FakeBroker

from models.errors import ApiError, AttachRefused
from streams.broker import CONSUMER_EXISTS, CONSUMER_NOT_FOUND, STREAM_NOT_FOUND
from streams.provision import (
    STREAM_NAME_IN_USE,
    apply,
    consumer_info,
    ensure_consumer,
    ensure_streams,
    plan,
    reset_consumer,
)
from streams.topology import STREAMS, Step, consumer_config, stream_config

INFO = f"CONSUMER.INFO.SIGNALS.{SPEC.durable}"
CREATE = f"CONSUMER.CREATE.SIGNALS.{SPEC.durable}"
SIGNALS = STREAMS[0]
DECISIONS = STREAMS[-1]
NO_STREAM = ApiError("", STREAM_NOT_FOUND, "stream not found")
NO_CONSUMER = ApiError("", CONSUMER_NOT_FOUND, "consumer not found")
OTHER_ERROR = ApiError("", 10052, "something else")


def wanted(**changes: object) -> dict[str, Any]:
    """The configuration of SIGNALS on a server that takes a mebibyte, except for ``changes``."""
    return stream_config(SIGNALS, replicas=1, max_payload_bytes=1024 * 1024) | changes


def durable(store_id: str = "mine", **changes: object) -> dict[str, Any]:
    """What the server says of the durable."""
    return {"config": consumer_config(SPEC, store_id=store_id) | changes}


async def ensure(broker: FakeBroker, known: tuple[str, ...] = ()) -> None:
    """Creates SIGNALS if it is missing."""
    await ensure_streams(broker, [SIGNALS], replicas=1, known=known)  # type: ignore[arg-type]


async def test_missing_stream_is_created() -> None:
    """A stream that is missing is created as declared."""
    broker = FakeBroker({"STREAM.INFO.SIGNALS": NO_STREAM})
    await ensure(broker)
    assert broker.requests("STREAM.CREATE.SIGNALS") == [wanted()]


async def test_log_without_room_says_how_much_it_takes() -> None:
    """The server names no figure, so the error has the log's size and what a server counts as free."""
    no_room = ApiError("STREAM.CREATE.DECISIONS", 10047, "insufficient storage resources available")
    broker = FakeBroker({"STREAM.INFO.DECISIONS": NO_STREAM, "STREAM.CREATE.DECISIONS": no_room})
    steps = [Step(kind="stream", name="DECISIONS", action="create")]
    with pytest.raises(ApiError, match="available: the stream takes 1024 MiB, and a server .* free as it starts"):
        await apply(broker, steps, [DECISIONS], [], replicas=1, store_id="mine")  # type: ignore[arg-type]


async def test_log_without_room_is_left_out_and_any_other_stream_is_an_error() -> None:
    """A server too small for the decisions serves the rest all the same; the streams of events are needed."""
    no_room = ApiError("", 10047, "insufficient storage resources available")
    broker = FakeBroker(
        {"STREAM.INFO.DECISIONS": NO_STREAM, "STREAM.CREATE.DECISIONS": no_room, "STREAM.INFO.SIGNALS": NO_STREAM}
    )
    await ensure_streams(broker, [DECISIONS, SIGNALS], replicas=1, known=())  # type: ignore[arg-type]
    assert broker.requests("STREAM.CREATE.SIGNALS") == [wanted()]
    broker.answers["STREAM.CREATE.SIGNALS"] = no_room
    with pytest.raises(ApiError):
        await ensure(broker)


async def test_stream_that_was_read_before_is_never_made_anew() -> None:
    """A known stream that is gone has lost its messages: it stays gone."""
    broker = FakeBroker({"STREAM.INFO.SIGNALS": NO_STREAM})
    await ensure(broker, known=("SIGNALS",))
    assert broker.requests("STREAM.CREATE") == []


async def test_stream_that_differs_is_left_alone() -> None:
    """An existing stream is not changed, whatever it is like."""
    broker = FakeBroker({"STREAM.INFO.SIGNALS": {"config": wanted(discard="old")}})
    await ensure(broker)
    assert len(broker.log) == 1


async def test_stream_that_another_worker_creates_at_once_is_no_error() -> None:
    """Two workers that start together may both try to create it."""
    in_use = ApiError("", STREAM_NAME_IN_USE, "stream name already in use")
    broker = FakeBroker({"STREAM.INFO.SIGNALS": NO_STREAM, "STREAM.CREATE.SIGNALS": in_use})
    await ensure(broker)
    assert len(broker.requests("STREAM.CREATE")) == 1


@pytest.mark.parametrize("subject", ["STREAM.INFO.SIGNALS", "STREAM.CREATE.SIGNALS"])
async def test_other_errors_of_the_server_pass(subject: str) -> None:
    """Whatever else the server says is the caller's to handle."""
    broker = FakeBroker({"STREAM.INFO.SIGNALS": NO_STREAM} | {subject: OTHER_ERROR})
    with pytest.raises(ApiError, match="something else"):
        await ensure(broker)


@pytest.mark.parametrize("error", [NO_STREAM, NO_CONSUMER], ids=["no-stream", "no-durable"])
async def test_durable_that_is_missing_has_no_info(error: ApiError) -> None:
    """Neither the durable nor its stream has to exist."""
    assert await consumer_info(FakeBroker({INFO: error}), "SIGNALS", SPEC.durable) is None  # type: ignore[arg-type]


async def ensure_durable(broker: FakeBroker) -> Any:
    """Creates the durable if it is missing."""
    return (await ensure_consumer(broker, SPEC, store_id="mine"))[0]  # type: ignore[arg-type]


async def test_missing_durable_is_created_with_the_store_in_its_metadata() -> None:
    """Creation alone is asked for, never an update, and names the store that will position it."""
    broker = FakeBroker({INFO: NO_CONSUMER, CREATE: durable()})
    assert await ensure_durable(broker) == durable()
    [body] = broker.requests("CONSUMER.CREATE")
    assert (body["action"], body["stream_name"]) == ("create", "SIGNALS")
    assert body["config"]["metadata"]["tipstream_store"] == "mine"


async def test_existing_durable_is_not_touched() -> None:
    """A durable that is there is read and no more, even if it differs."""
    broker = FakeBroker({INFO: durable(ack_wait=7)})
    await ensure_durable(broker)
    assert len(broker.log) == 1


async def test_durable_that_somebody_else_creates_at_once_is_examined() -> None:
    """A creation that comes too late reads what the other one made, and refuses it if it is another store's."""
    exists = ApiError("", CONSUMER_EXISTS, "consumer already exists")
    answers = iter([NO_CONSUMER, durable("other")])

    async def info(body: object) -> Any:
        answer = next(answers)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    with pytest.raises(AttachRefused, match="belongs to store other, and this STATE_DIR holds store mine"):
        await ensure_durable(FakeBroker({INFO: info, CREATE: exists}))


async def test_durable_without_a_store_is_refused() -> None:
    """A durable that somebody made by hand is named as that."""
    with pytest.raises(AttachRefused, match="was not made by this application"):
        await ensure_durable(FakeBroker({INFO: durable(metadata=None)}))


@pytest.mark.parametrize("subject", [INFO, CREATE])
async def test_other_errors_about_a_durable_pass(subject: str) -> None:
    """An error that says nothing about existence is the caller's to handle."""
    with pytest.raises(ApiError, match="something else"):
        await ensure_durable(FakeBroker({INFO: NO_CONSUMER} | {subject: OTHER_ERROR}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_deliver", 5), ("ack_policy", "none"), ("backoff", [1]), ("inactive_threshold", 1), ("headers_only", True)],
)
async def test_durable_that_would_lose_messages_is_refused(field: str, value: object) -> None:
    """Settings under which messages get lost are named, and the durable is not used."""
    with pytest.raises(AttachRefused, match=rf"durable {SPEC.durable} has {field}"):
        await ensure_durable(FakeBroker({INFO: durable(**{field: value})}))


async def test_reset_goes_to_the_sequence() -> None:
    """A server that knows resets is asked for one."""
    broker = FakeBroker()
    await reset_consumer(broker, SPEC, 8, store_id="mine")  # type: ignore[arg-type]
    assert broker.log == [(f"CONSUMER.RESET.SIGNALS.{SPEC.durable}", {"seq": 8})]


async def test_reset_on_an_old_server_makes_the_durable_anew() -> None:
    """A server without resets loses the durable and gets one of the same name that starts at the sequence."""
    broker = FakeBroker()
    broker.server_version = (2, 13, 9)
    await reset_consumer(broker, SPEC, 8, store_id="mine")  # type: ignore[arg-type]
    assert [entry[0] for entry in broker.log] == [f"CONSUMER.DELETE.SIGNALS.{SPEC.durable}", CREATE]
    config = broker.log[1][1]["config"]
    assert (config["deliver_policy"], config["opt_start_seq"]) == ("by_start_sequence", 8)
    assert config["metadata"]["tipstream_store"] == "mine"


PLANS = {
    "nothing-there": ({"STREAM.INFO.SIGNALS": NO_STREAM, INFO: NO_STREAM}, ["create", "create"]),
    "as-declared": ({"STREAM.INFO.SIGNALS": {"config": wanted()}, INFO: durable()}, ["none", "none"]),
    "differs": (
        {"STREAM.INFO.SIGNALS": {"config": wanted(discard="old")}, INFO: durable(ack_wait=7)},
        ["update", "update"],
    ),
    "other-store": ({"STREAM.INFO.SIGNALS": {"config": wanted()}, INFO: durable("other")}, ["none", "refused"]),
}


@pytest.mark.parametrize(("answers", "actions"), PLANS.values(), ids=PLANS.keys())
async def test_plan_says_what_apply_would_do_and_changes_nothing(answers: dict[str, Any], actions: list[str]) -> None:
    """Each stream and durable gets one step, from what is there; only questions are asked."""
    broker = FakeBroker(answers)
    steps = await plan(broker, [SIGNALS], [SPEC], replicas=1, store_id="mine")  # type: ignore[arg-type]
    assert [(step.kind, step.name, step.action) for step in steps] == [
        ("stream", "SIGNALS", actions[0]),
        ("consumer", SPEC.durable, actions[1]),
    ]
    assert [entry[0] for entry in broker.log] == ["STREAM.INFO.SIGNALS", INFO]
    assert bool(steps[0].differences) == (actions[0] == "update")
    assert bool(steps[1].reason) == (actions[1] == "refused")


async def applied(broker: FakeBroker, *steps: Step) -> list[str]:
    """Applies steps; returns the API subjects that were asked."""
    await apply(broker, steps, [SIGNALS], [SPEC], replicas=1, store_id="mine")  # type: ignore[arg-type]
    return [entry[0] for entry in broker.log]


def step(kind: Any, action: Any) -> Step:
    """A step of a plan."""
    return Step(kind=kind, name="SIGNALS" if kind == "stream" else SPEC.durable, action=action)


async def test_apply_creates_what_is_missing() -> None:
    """A missing stream and a missing durable are created as declared."""
    broker = FakeBroker()
    asked = await applied(broker, step("stream", "create"), step("consumer", "create"))
    assert asked == ["STREAM.CREATE.SIGNALS", CREATE]
    assert broker.log[0][1] == wanted()
    assert broker.log[1][1]["action"] == "create"


async def test_apply_updates_what_differs_and_keeps_what_is_not_declared() -> None:
    """An update of a stream keeps the fields that nobody declares; one of a durable is an update, not a creation."""
    broker = FakeBroker({"STREAM.INFO.SIGNALS": {"config": wanted(discard="old", description="by hand")}})
    asked = await applied(broker, step("stream", "update"), step("consumer", "update"))
    assert asked == ["STREAM.INFO.SIGNALS", "STREAM.UPDATE.SIGNALS", CREATE]
    assert broker.log[1][1] == wanted(description="by hand")
    assert broker.log[2][1]["action"] == "update"


@pytest.mark.parametrize("action", ["none", "refused"])
async def test_apply_leaves_the_rest_alone(action: str) -> None:
    """What is as declared, or another store's, is not touched."""
    assert await applied(FakeBroker(), attrs.evolve(step("stream", "none"), action=action)) == []
