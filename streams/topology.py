"""The streams and durable consumers the application needs, as data, and how far a server differs from them.

Pure: configurations are built and compared here; streams/provision.py asks the server. A worker creates what is missing
and never changes what exists.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs

from models.errors import DeclarationError
from streams.patterns import covers, matches, overlap

HEADER_BUDGET_BYTES = 16 * 1024
"""Kept free beside the largest message of a stream, for the headers of its dead letter."""
EVENT_HEADER_BYTES = 1024
"""Kept free beside an event, for the headers of its own."""
MAX_ACK_PENDING = 1000
DUPLICATE_WINDOW_S = 600
NANOSECONDS = 1_000_000_000
HEARTBEAT_S = 0.5
"""How often the server says that it is there while it has nothing to deliver."""

STORE_KEY = "tipstream_store"
TABLE_KEY = "tipstream_table"

DEAD_LETTERS = "DEAD_LETTERS"
DECISIONS = "DECISIONS"
TIMERS = "TIMERS"
DEAD_LETTER_PREFIX = "deadletters."
DECISION_PREFIX = "decisions."
DECISIONS_BYTES = 1024**3
"""About 400,000 decisions of 20 candidates with 24 features each."""


@attrs.frozen(kw_only=True)
class StreamSpec:
    """A stream: kept on disk without an age limit, refusing new messages rather than dropping old ones when full.

    Args:
        is_public: handlers and ``send`` may publish to it.
        is_for_handlers: handlers take its messages, so it limits payloads so that a dead letter of one still fits.
        log_bytes: makes it a log that drops its oldest messages beyond this size, and takes atomic batches. A log may
            be missing, and hold what nobody handles; None for a stream that keeps everything.
    """

    name: str
    subjects: tuple[str, ...]
    is_public: bool = True
    is_for_handlers: bool = True
    log_bytes: int | None = None


STREAMS = (
    StreamSpec(name="SIGNALS", subjects=("signals.>",)),
    StreamSpec(name="FEEDBACK", subjects=("feedback.>",)),
    StreamSpec(name=TIMERS, subjects=("timers.>",), is_public=False),
    StreamSpec(name=DEAD_LETTERS, subjects=("deadletters.>",), is_public=False, is_for_handlers=False),
    StreamSpec(name=DECISIONS, subjects=("decisions.>",), log_bytes=DECISIONS_BYTES),
)


@attrs.frozen(kw_only=True)
class ConsumerSpec:
    """A durable consumer: the subjects of one subject table, all in one stream.

    Args:
        former: durables of earlier versions and names of the table, the newest first; the position moves along.
        is_shared: several workers consume it at once, and nobody sets its position.
        is_push: the server sends to a subject that each attach names anew.
        start: where it begins, as SubjectTable has it.
    """

    durable: str
    table: str
    stream: str
    subjects: tuple[str, ...]
    ack_wait_s: float
    former: tuple[str, ...] = ()
    is_shared: bool = False
    is_push: bool = False
    start: str | int | dt.datetime = "all"


@attrs.frozen(kw_only=True)
class Difference:
    """A field of a stream or durable that the server has otherwise than declared."""

    field: str
    wanted: object
    found: object

    def __str__(self) -> str:
        return f"{self.field}: {self.found!r} instead of {self.wanted!r}"


@attrs.frozen(kw_only=True)
class Step:
    """One line of a plan: what ``streams apply`` would create or change."""

    kind: Literal["stream", "consumer"]
    name: str
    action: Literal["create", "update", "none", "refused"]
    differences: tuple[Difference, ...] = ()
    reason: str = ""


def stream_of(subjects: Sequence[str], streams: Iterable[StreamSpec], where: str) -> StreamSpec:
    """Finds the one stream in which all of a table's subjects lie.

    Raises:
        DeclarationError: there is none, or the subjects lie in several.
    """
    known = list(streams)
    homes = set()
    for subject in subjects:
        home = [spec for spec in known if any(covers(pattern, subject) for pattern in spec.subjects)]
        if not home:
            touched = [spec.name for spec in known if any(overlap(pattern, subject) for pattern in spec.subjects)]
            patterns = ", ".join(pattern for spec in known for pattern in spec.subjects)
            problem = (
                f"lies in several streams ({', '.join(touched)})"
                if touched
                else f"no stream has it (there is {patterns})"
            )
            raise DeclarationError(where, f"subject {subject!r}: {problem}")
        homes.add(home[0])
    if len(homes) != 1:
        names = ", ".join(sorted(spec.name for spec in homes)) or "none"
        raise DeclarationError(where, f"subjects: expected all in one stream, got {names}")
    return homes.pop()


def is_publishable(subject: str, streams: Iterable[StreamSpec]) -> bool:
    """Whether handlers may publish on ``subject``."""
    return any(spec.is_public and any(matches(pattern, subject) for pattern in spec.subjects) for spec in streams)


def stream_config(spec: StreamSpec, *, replicas: int, max_payload_bytes: int) -> dict[str, object]:
    """The stream's configuration as JetStream's API takes it."""
    log: dict[str, object] = {}
    if spec.log_bytes is not None:
        log = {"discard": "old", "max_bytes": spec.log_bytes, "allow_atomic": True}
    return {
        "name": spec.name,
        "subjects": list(spec.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
        "num_replicas": replicas,
        "duplicate_window": DUPLICATE_WINDOW_S * NANOSECONDS,
        "max_msg_size": max_payload_bytes - HEADER_BUDGET_BYTES if spec.is_for_handlers else -1,
        "allow_direct": True,
        "deny_delete": not spec.is_for_handlers,
    } | log


def consumer_config(spec: ConsumerSpec, *, store_id: str) -> dict[str, object]:
    """The durable's configuration as JetStream's API takes it.

    The limit of deliveries is ours, so the server's stays off: with it, a crash of the server loses messages without a
    word. The position is set by a reset after creation.
    """
    way: dict[str, object] = {"max_waiting": 128}
    if spec.is_push:
        way = {"deliver_subject": f"_TIPSTREAM.{spec.durable}", "idle_heartbeat": int(HEARTBEAT_S * NANOSECONDS)}
    return way | {
        "durable_name": spec.durable,
        "name": spec.durable,
        "filter_subjects": list(spec.subjects),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": int(spec.ack_wait_s * NANOSECONDS),
        "max_deliver": -1,
        "max_ack_pending": MAX_ACK_PENDING,
        "inactive_threshold": 0,
        "backoff": [],
        "headers_only": False,
        "metadata": {STORE_KEY: store_id, TABLE_KEY: spec.table},
    }


def differences(wanted: Mapping[str, object], found: Mapping[str, object]) -> tuple[Difference, ...]:
    """Compares what is declared with what the server has; what only the server knows does not count."""
    result = []
    for field, value in wanted.items():
        if field in ("deliver_policy", "deliver_subject"):  # the position is ours; each attach names a subject
            continue
        other = _normal(field, found)
        if field == "metadata" and isinstance(value, dict) and isinstance(other, dict):
            other = {key: other.get(key) for key in value}
        if field in ("filter_subjects", "subjects") and sorted(_strings(value)) == sorted(_strings(other)):
            continue
        if value != other and (value or other):
            result.append(Difference(field=field, wanted=value, found=other))
    return tuple(result)


def dangers(config: Mapping[str, object], *, is_push: bool) -> list[str]:
    """Settings of a durable under which messages are lost, or don't come, so that it is better left alone."""
    found = []
    if bool(config.get("deliver_subject")) != is_push:
        is_now, wanted = ("pull", "push") if is_push else ("push", "pull")
        found.append(f"delivery {is_now!r} instead of {wanted!r}, which takes a new version of the table")
    if config.get("ack_policy") != "explicit":
        found.append(f"ack_policy {config.get('ack_policy')!r} instead of 'explicit'")
    if (limit := config.get("max_deliver", -1)) != -1:
        found.append(f"max_deliver {limit!r}, which drops messages without a word")
    found += [f"{field} {config[field]!r}" for field in ("backoff", "inactive_threshold") if config.get(field)]
    if config.get("headers_only"):
        found.append("headers_only, which leaves the payloads out")
    return found


def _normal(field: str, found: Mapping[str, object]) -> object:
    if field == "filter_subjects" and not found.get(field) and found.get("filter_subject"):
        return [found["filter_subject"]]
    return found.get(field)


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
