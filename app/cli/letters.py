"""Reads dead letters: what their stream holds, joined with what the store knows became of them. Changes nothing."""

import base64
import contextlib
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from state.schema import has_database
from state.sqlite import SqliteReader
from state.store import DeadLetter, store_path
from streams.broker import API_PREFIX, Broker
from streams.changes import DEAD_LETTER_HEADER, instant
from streams.provision import stream_info
from streams.redrive import is_letter_of, names_of, unescaped
from streams.subjects import SubjectTable
from streams.topology import DEAD_LETTER_PREFIX, DEAD_LETTERS, NANOSECONDS

SILENT_S = 10.0
KEPT_S = 30
UNKNOWN = "unknown"
LETTERS = f"{DEAD_LETTER_PREFIX}*.*.*.*"
"""Stream, table, function, sequence: no request to redrive is among them, which has one token less."""

Known = Mapping[tuple[str, int], DeadLetter]


@attrs.frozen(kw_only=True)
class Letter:
    """A dead letter: its place, its headers without their prefix, and what the store knows of it; None if nothing."""

    handler: str
    stream: str
    seq: int
    headers: Mapping[str, str]
    known: DeadLetter | None

    @property
    def id(self) -> str:
        """How commands name it."""
        return f"{self.handler}:{self.seq}"

    @property
    def subject(self) -> str:
        """The subject of its message."""
        return unescaped(self.headers.get("Subject", ""))

    @property
    def state(self) -> str:
        """What became of it."""
        return self.known.state if self.known else UNKNOWN

    @property
    def error(self) -> str:
        """The last error: of its last redrive, if there was one."""
        return self.known.error if self.known else unescaped(self.headers.get("Error", ""))

    @property
    def failures(self) -> int:
        """How often its handler had failed when it was given up."""
        text = self.headers.get("Failures", "")
        return int(text) if text.isdecimal() else 0

    @property
    def attempts(self) -> list[dict[str, str]]:
        """Its failures, the newest last."""
        try:
            told = json.loads(self.headers.get("Attempts", "[]"))
        except ValueError:
            return []
        return [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []

    def is_of(self, handler: str, names: Mapping[str, str]) -> bool:
        """Whether it is of a handler, by its name of then or of today."""
        return handler in (self.handler, names.get(self.handler))

    def facts(self) -> dict[str, Any]:
        """All that its headers say, as it was before it was escaped."""
        facts: dict[str, Any] = {name.lower(): unescaped(value) for name, value in self.headers.items()}
        return facts | {"attempts": self.attempts}


def current_names(tables: Iterable[SubjectTable]) -> dict[str, str]:
    """Today's name of each handler, by every name it has had; a name of today is nobody's former one."""
    handlers = [(table, handler) for table in tables for handler in table.handlers]
    former = {name: handler.name for table, handler in handlers for name in names_of(table, handler)}
    return former | {handler.name: handler.name for _, handler in handlers}


def read_known(state_dir: Path) -> Known:
    """What the store knows of dead letters, by handler and sequence; a worker may run meanwhile."""
    path = store_path(state_dir)
    if not has_database(path):
        return {}
    with contextlib.closing(SqliteReader(path)) as reader:
        return reader.fetch_dead()


async def read_letters(broker: Broker, known: Known) -> list[Letter]:
    """Reads all dead letters without their payloads, the oldest first.

    Raises:
        BrokerUnavailable, ApiError: the stream could not be read to its end.
    """
    async with contextlib.aclosing(_headers(broker)) as found:
        return [letter async for subject, headers in found if (letter := parse_letter(subject, headers, known))]


def parse_letter(subject: str, headers: Mapping[str, str], known: Known) -> Letter | None:
    """Reads a letter; None for what others have put there."""
    stream, table, function, number = subject.removeprefix(DEAD_LETTER_PREFIX).split(".")
    told = {
        name.removeprefix(DEAD_LETTER_HEADER): value
        for name, value in headers.items()
        if name.startswith(DEAD_LETTER_HEADER)
    }
    if not (number.isdecimal() and told.get("Sequence") == number):
        return None
    seq, handler = int(number), f"{table}.{function}"
    found = known.get((handler, seq))
    if found is not None and not is_letter_of(headers, found):
        found = None
    return Letter(handler=handler, stream=stream, seq=seq, headers=told, known=found)


async def _headers(broker: Broker) -> AsyncGenerator[tuple[str, Mapping[str, str]], None]:
    """Subject and headers of every dead letter."""
    if await stream_info(broker, DEAD_LETTERS) is None:
        raise click.ClickException(f"stream {DEAD_LETTERS} is not there yet; a worker makes it")
    config = {
        "deliver_policy": "all",
        "filter_subjects": [LETTERS],
        "ack_policy": "none",
        "headers_only": True,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": KEPT_S * NANOSECONDS,
    }
    created = await broker.api(f"CONSUMER.CREATE.{DEAD_LETTERS}", {"stream_name": DEAD_LETTERS, "config": config})
    name, left = created["name"], created["num_pending"]
    try:
        async with contextlib.aclosing(broker.read(DEAD_LETTERS, name, left, silent_s=SILENT_S)) as messages:
            async for message, headers in messages:
                yield message.subject, headers
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{DEAD_LETTERS}.{name}")


async def read_payload(broker: Broker, letter: Letter) -> bytes | None:
    """A letter's payload, of a large one from its own stream; None when that no longer has it.

    Raises:
        BrokerUnavailable, ApiError: it could not be read.
    """
    if "Pointer" in letter.headers:
        original = await broker.message_at(letter.stream, letter.seq)
        is_same = original is not None and instant(original.ts / 1e9) == letter.headers.get("Time")
        return original.payload if original is not None and is_same else None
    subject = f"{DEAD_LETTER_PREFIX}{letter.stream}.{letter.id.replace(':', '.')}"
    return (await broker.last_message(DEAD_LETTERS, subject)).payload


def show_payload(payload: bytes | None) -> dict[str, str | None]:
    """A payload as text, or in base64 where it is none."""
    try:
        return {"payload": None if payload is None else payload.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(payload or b"").decode()}
