"""Creates the streams and durables that are missing, and plans or applies the changes that a person asks for.

A worker calls ``ensure_streams`` and ``ensure_consumer``, which only create. ``plan`` and ``apply`` serve
``python -m app streams``.
"""

import datetime as dt
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from models.errors import ApiError, AttachRefused
from streams.broker import CONSUMER_EXISTS, CONSUMER_NOT_FOUND, MIN_SERVER, STREAM_NOT_FOUND, Broker
from streams.topology import (
    NANOSECONDS,
    STORE_KEY,
    ConsumerSpec,
    Step,
    StreamSpec,
    consumer_config,
    dangers,
    differences,
    stream_config,
)

log = logging.getLogger(__name__)

NO_ROOM = 10047
STREAM_NAME_IN_USE = 10058
MIB = 1024**2


async def ensure_streams(
    broker: Broker, streams: Iterable[StreamSpec], *, replicas: int, known: Collection[str]
) -> None:
    """Creates missing streams; leaves existing ones as they are.

    A log for which the server has no room is left out, with an error in the application's log: nothing is handled later
    because of it.

    Args:
        known: streams that the store has read before; one of these that is gone has lost its messages, so it is not
            made anew here.

    Raises:
        ApiError, BrokerUnavailable: the server refused, or did not answer.
    """
    for spec in streams:
        if spec.name not in known and await stream_info(broker, spec.name) is None:
            config = stream_config(spec, replicas=replicas, max_payload_bytes=broker.max_payload_bytes)
            try:
                await create_stream(broker, config)
            except ApiError as error:
                if spec.log_bytes is None:
                    raise
                log.error("stream can't be created", extra={"fields": {"stream": spec.name, "error": str(error)}})


async def stream_info(broker: Broker, name: str) -> Any | None:
    """Reads a stream's configuration and state, or None when there is no such stream."""
    try:
        return await broker.api(f"STREAM.INFO.{name}")
    except ApiError as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise


async def consumer_info(broker: Broker, stream: str, durable: str, *, timeout_s: float = 2) -> Any | None:
    """Reads a durable's configuration and state, or None when it, or its stream, does not exist."""
    try:
        return await broker.api(f"CONSUMER.INFO.{stream}.{durable}", timeout_s=timeout_s)
    except ApiError as error:
        if error.code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
            return None
        raise


async def create_stream(broker: Broker, config: Mapping[str, object]) -> None:
    """Creates a stream; another worker that did so at the same time is no error.

    Raises:
        ApiError, BrokerUnavailable: the server refused, or did not answer.
    """
    try:
        await broker.api(f"STREAM.CREATE.{config['name']}", config, timeout_s=10)
        log.info("stream created", extra={"fields": {"stream": config["name"]}})
    except ApiError as error:
        if error.code != STREAM_NAME_IN_USE:
            raise _explained(error, config) from error


def _explained(error: ApiError, config: Mapping[str, object]) -> ApiError:
    """The error with what its server leaves unsaid: how much it lacks, and what it counts as there."""
    size = config.get("max_bytes")
    if error.code != NO_ROOM or not isinstance(size, int):
        return error
    says = f"{error.description}: the stream takes {size // MIB} MiB, and a server without a limit of its own"
    return ApiError(error.subject, error.code, f"{says} counts three quarters of the disk that is free as it starts")


async def ensure_consumer(broker: Broker, spec: ConsumerSpec, *, store_id: str) -> tuple[Any, bool]:
    """Creates the durable when it is missing.

    Returns:
        Its information as the server gives it, and whether it was missing.

    Raises:
        AttachRefused: the durable belongs to another store, or is set so that messages get lost.
    """
    found = await consumer_info(broker, spec.stream, spec.durable)
    was_missing = found is None
    if found is None:
        body = {"stream_name": spec.stream, "action": "create", "config": consumer_config(spec, store_id=store_id)}
        try:
            found = await broker.api(f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", body)
            log.info("durable created", extra={"fields": {"durable": spec.durable, "stream": spec.stream}})
        except ApiError as error:
            if error.code != CONSUMER_EXISTS:
                raise
            found = await broker.api(f"CONSUMER.INFO.{spec.stream}.{spec.durable}")
    check_identity(spec.durable, found["config"], store_id)
    if problems := dangers(found["config"], is_push=spec.is_push):
        raise AttachRefused(f"durable {spec.durable} has {', '.join(problems)}: run 'streams apply', or delete it")
    return found, was_missing


async def point_consumer(broker: Broker, spec: ConsumerSpec, found: Mapping[str, Any], deliver_subject: str) -> None:
    """Has a push durable deliver to another subject, and leaves all else as it is.

    Raises:
        ApiError: somebody still listens on the former one.
    """
    config = {**found["config"], "deliver_subject": deliver_subject}
    body = {"stream_name": spec.stream, "action": "update", "config": config}
    await broker.api(f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", body)


async def first_floor(broker: Broker, spec: ConsumerSpec, info: Mapping[str, Any]) -> tuple[int, int]:
    """Where a durable begins that was never read: the sequence before its first message, and that one's timestamp.

    Args:
        info: what the server says of the stream.
    """
    state = info["state"]
    if spec.start == "all":
        seq = state["first_seq"] - 1
    elif spec.start == "new":
        seq = state["last_seq"]
    elif isinstance(spec.start, int):
        seq = min(spec.start - 1, state["last_seq"])
    else:
        seq = await seq_before(broker, spec.stream, spec.start)
    seq = max(0, seq)
    message = await broker.message_at(spec.stream, seq) if seq else None
    return seq, message.ts if message else 0


async def seq_before(broker: Broker, stream: str, start: object) -> int:
    """The last sequence before an instant, which the server finds for a consumer that starts there."""
    config = {
        "deliver_policy": "by_start_time",
        "opt_start_time": start.isoformat() if isinstance(start, dt.datetime) else start,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": NANOSECONDS,
    }
    created = await broker.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    await broker.api(f"CONSUMER.DELETE.{stream}.{created['name']}")
    return int(created["delivered"]["stream_seq"])


def check_identity(durable: str, config: Mapping[str, Any], store_id: str) -> None:
    """Refuses a durable that another store positions: two stores on one durable would split the state in silence.

    Raises:
        AttachRefused: naming both, and the ways out.
    """
    owner = (config.get("metadata") or {}).get(STORE_KEY)
    if owner != store_id:
        whose = f"belongs to store {owner}" if owner else "was not made by this application"
        raise AttachRefused(
            f"durable {durable} {whose}, and this STATE_DIR holds store {store_id}: start with the STATE_DIR of that "
            "store, or with an empty one and another NATS_DURABLE_PREFIX to read the streams from their beginning, or "
            "give the durable to this store with 'streams adopt'"
        )


async def reset_consumer(broker: Broker, spec: ConsumerSpec, seq: int, *, store_id: str) -> None:
    """Has the durable deliver from ``seq`` on, as if for the first time, whatever was delivered before.

    A server without consumer reset gets a new durable of the same name, which does the same.
    """
    if broker.server_version >= MIN_SERVER:
        await broker.api(f"CONSUMER.RESET.{spec.stream}.{spec.durable}", {"seq": seq})
        return
    await broker.api(f"CONSUMER.DELETE.{spec.stream}.{spec.durable}")
    start = {"deliver_policy": "by_start_sequence", "opt_start_seq": seq}
    config = consumer_config(spec, store_id=store_id) | start
    body = {"stream_name": spec.stream, "action": "create", "config": config}
    await broker.api(f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", body)


async def plan(
    broker: Broker, streams: Iterable[StreamSpec], consumers: Iterable[ConsumerSpec], *, replicas: int, store_id: str
) -> list[Step]:
    """Compares the server with what is declared, and changes nothing."""
    steps = []
    for spec in streams:
        wanted = stream_config(spec, replicas=replicas, max_payload_bytes=broker.max_payload_bytes)
        found = await stream_info(broker, spec.name)
        steps.append(_step("stream", spec.name, wanted, found and found["config"]))
    for durable in consumers:
        info = await consumer_info(broker, durable.stream, durable.durable)
        config = consumer_config(durable, store_id=store_id)
        try:
            if info is not None:
                check_identity(durable.durable, info["config"], store_id)
        except AttachRefused as error:
            steps.append(Step(kind="consumer", name=durable.durable, action="refused", reason=str(error)))
            continue
        steps.append(_step("consumer", durable.durable, config, info and info["config"]))
    return steps


def _step(kind: Any, name: str, wanted: Mapping[str, object], found: Mapping[str, object] | None) -> Step:
    if found is None:
        return Step(kind=kind, name=name, action="create")
    changed = differences(wanted, found)
    return Step(kind=kind, name=name, action="update" if changed else "none", differences=changed)


async def apply(
    broker: Broker,
    steps: Iterable[Step],
    streams: Iterable[StreamSpec],
    consumers: Iterable[ConsumerSpec],
    *,
    replicas: int,
    store_id: str,
) -> None:
    """Carries out the steps of a plan: creates what is missing, updates what differs.

    Raises:
        ApiError: the server refused one; the steps before it are done.
    """
    stream_specs = {spec.name: spec for spec in streams}
    consumer_specs = {spec.durable: spec for spec in consumers}
    for step in steps:
        if step.action not in ("create", "update"):
            continue
        if step.kind == "stream":
            wanted = stream_config(
                stream_specs[step.name], replicas=replicas, max_payload_bytes=broker.max_payload_bytes
            )
            if step.action == "update":
                found = (await broker.api(f"STREAM.INFO.{step.name}"))["config"]
                wanted = found | wanted
                await broker.api(f"STREAM.UPDATE.{step.name}", wanted, timeout_s=10)
            else:
                await create_stream(broker, wanted)
        else:
            spec = consumer_specs[step.name]
            config = consumer_config(spec, store_id=store_id)
            body = {"stream_name": spec.stream, "action": step.action, "config": config}
            await broker.api(f"CONSUMER.CREATE.{spec.stream}.{spec.durable}", body, timeout_s=10)
