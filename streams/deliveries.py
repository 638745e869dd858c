"""What the server sends, read into records: deliveries by their reply subjects, statuses, stored messages. Pure."""

import base64
import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

import attrs

from models.errors import ApiError, BrokerUnavailable
from streams.message import Message


@attrs.frozen(kw_only=True)
class PullStatus:
    """A status that answers a pull request instead of a message, with what the request still asked for."""

    code: int
    description: str
    pending_messages: int


@attrs.frozen(kw_only=True)
class PubAck:
    """JetStream has stored a message, or had it already."""

    stream: str
    seq: int
    is_duplicate: bool


@attrs.frozen(kw_only=True)
class StoredMessage:
    """A message as its stream keeps it."""

    subject: str
    seq: int
    ts: int
    payload: bytes
    headers: dict[str, str]


def parse_delivery(subject: str, payload: bytes, reply: str) -> Message:
    """Reads a message's place from its reply subject, in the nine-token form or the longer one with a domain."""
    tokens = reply.split(".")
    at = 2 if len(tokens) == 9 else 4
    numbers = int(tokens[at + 3]), int(tokens[at + 4]), int(tokens[at + 5]), int(tokens[at + 2])
    return Message(tokens[at], subject, payload, reply, *numbers)


def parse_status(headers: Mapping[str, str]) -> PullStatus:
    """Reads the status that answers a pull request; an unreadable one counts as 100, a sign of life."""
    code = headers.get("Status", "100")
    pending = headers.get("Nats-Pending-Messages", "0")
    return PullStatus(
        code=int(code) if code.isdecimal() else 100,
        description=headers.get("Description", "") or "",
        pending_messages=int(pending) if pending.isdecimal() else 0,
    )


def parse_pub_ack(subject: str, body: bytes) -> PubAck:
    """Reads how JetStream answers a publish.

    Raises:
        ApiError: the stream refused it.
        BrokerUnavailable: this is no answer of JetStream.
    """
    try:
        answer = json.loads(body)
        if error := answer.get("error"):
            raise ApiError(subject, error.get("err_code") or error.get("code", 0), error.get("description", ""))
        if not (isinstance(answer["stream"], str) and isinstance(answer["seq"], int)):
            raise TypeError("a stream and a sequence of other types")
        return PubAck(stream=answer["stream"], seq=answer["seq"], is_duplicate=answer.get("duplicate", False))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BrokerUnavailable(f"{subject}: somebody else answers there, not JetStream ({body[:40]!r})") from error


def parse_instant_ns(text: str) -> int:
    """Reads the server's instants in UTC, which have up to nine digits of a second, as nanoseconds since 1970."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    seconds = int(dt.datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000_000 + int(rest.ljust(9, "0") or "0")


def parse_stored(message: Mapping[str, Any]) -> StoredMessage:
    """Reads a message as the server's API gives it."""
    lines = base64.b64decode(message.get("hdrs", "")).decode("utf-8", "replace").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return StoredMessage(
        subject=message["subject"],
        seq=message["seq"],
        ts=parse_instant_ns(message["time"]),
        payload=base64.b64decode(message.get("data", "")),
        headers={name.strip(): value.strip() for name, _, value in pairs},
    )
