"""``send``: publish events and wait until JetStream has stored each.

Without ``--raw`` every payload is checked first against the event type of the handler that would get it; one that does
not fit is named by its line and not sent.
"""

import asyncio
import contextlib
import sys
import uuid
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.session import HasEnvironment, build_app, connected, print_json, run_command
from app.settings import Settings, load_settings
from models.errors import ApiError, BrokerError, BrokerUnavailable, PayloadError
from streams.broker import Broker
from streams.lookup import MSG_ID
from streams.patterns import is_subject, matches
from streams.provision import stream_info
from streams.subjects import Handler
from streams.ticks import TIMERS_PREFIX
from streams.topology import STREAMS

IN_FLIGHT = 256
IN_FLIGHT_BYTES = 2 * 1024 * 1024  # far below what nats-py keeps while it connects; beyond, it takes small ones alone
RETRY_FOR_S = 15.0
STREAM_WAIT_S = 2.0
NO_ANSWER = "no answer"


@attrs.define
class Tally:
    """What became of the lines: ``refused`` has (line, reason) of those that were not sent."""

    sent: int = 0
    refused: list[tuple[int, str]] = attrs.field(factory=list)

    def note(self, line: "Line", problem: str) -> None:
        """Counts a line; without a problem it is stored."""
        if problem:
            self.refused.append((line.number, f"not stored: {problem}"))
        else:
            self.sent += 1


@attrs.frozen(kw_only=True)
class Line:
    """A payload with its line's number and the id under which it is stored once."""

    number: int
    payload: bytes
    message_id: str


@click.command("send")
@click.argument("subject")
@click.argument("payload", required=False)
@click.option("--file", "file", type=click.File("rb"), help="A file of payloads, one a line; - for standard input.")
@click.option("--raw", is_flag=True, help="Send payloads that do not fit the event type too.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def send(
    obj: HasEnvironment, subject: str, payload: str | None, *, file: BinaryIO | None, raw: bool, as_json: bool
) -> None:
    """Publish PAYLOAD, or each line of a file, on SUBJECT, in order.

    A payload that does not fit the event type of its handler is refused and named; the others are sent, and the exit
    code is 1. A repeated attempt after a broken connection is stored once.
    """
    if (payload is None) == (file is None):
        raise click.UsageError("give either PAYLOAD or --file")
    if payload is not None and not payload.strip() and not raw:
        raise click.UsageError("PAYLOAD: expected JSON, got nothing (--raw sends that too)")
    settings = load_settings(obj.env)
    stream = _stream_of(subject)
    handler = _handler_of(subject, settings)
    source = file if file else [(payload or "").encode()]
    tally = run_command(_send(settings, subject, source, stream=stream, handler=None if raw else handler))
    if as_json:
        refused = [{"line": line, "reason": reason} for line, reason in tally.refused]
        print_json({"subject": subject, "sent": tally.sent, "handler": handler and handler.name, "refused": refused})
    else:
        for line, reason in tally.refused:
            click.echo(f"line {line}: {reason}", err=True)
        note = "" if handler else " (no handler matches: it stays in its stream)"
        click.echo(f"{tally.sent} sent on {subject}{note}" + (f", {len(tally.refused)} refused" * bool(tally.refused)))
    if tally.refused:
        sys.exit(1)


def _stream_of(subject: str) -> str:
    if not is_subject(subject):
        raise click.UsageError(f"SUBJECT: expected tokens parted by dots, without '*', '>' or blanks, got {subject!r}")
    if subject.startswith(TIMERS_PREFIX):
        raise click.UsageError(f"SUBJECT: the ticks on {subject!r} are published by the worker that owns STATE_DIR")
    for spec in STREAMS:
        if spec.is_public and any(matches(pattern, subject) for pattern in spec.subjects):
            return spec.name
    known = ", ".join(pattern for spec in STREAMS if spec.is_public for pattern in spec.subjects)
    raise click.UsageError(f"SUBJECT: no stream takes {subject!r}; there is {known}")


def _handler_of(subject: str, settings: Settings) -> Handler | None:
    tables = build_app(settings).subject_tables
    return next((found for table in tables if (found := table.handler_for(subject))), None)


def _payloads(source: BinaryIO | list[bytes]) -> Iterator[tuple[int, bytes]]:
    """Numbers the payloads; a file's blank lines are none."""
    for number, line in enumerate(source, 1):
        if line.strip() or isinstance(source, list):
            yield number, line.rstrip(b"\r\n")


async def _send(
    settings: Settings, subject: str, source: BinaryIO | list[bytes], *, stream: str, handler: Handler | None
) -> Tally:
    async with connected(settings) as broker:
        await _check_stream(broker, stream)
        return await _publish_all(broker, subject, source, handler=handler)


async def _publish_all(
    broker: Broker,
    subject: str,
    source: BinaryIO | list[bytes],
    *,
    handler: Handler | None,
    retry_for_s: float = RETRY_FOR_S,
) -> Tally:
    """Publishes every payload that fits the handler's event type, in order, a bounded number at a time.

    It ends at a line that can't be stored because NATS stays away.
    """
    tally = Tally()
    with _progress() as progress:
        bar = progress.add_task(subject, total=None)
        for window in _windows(_lines(source, handler, tally)):
            if not await _publish_window(broker, subject, window, tally=tally, retry_for_s=retry_for_s):
                break
            progress.advance(bar, len(window))
    tally.refused.sort()
    return tally


def _lines(source: BinaryIO | list[bytes], handler: Handler | None, tally: Tally) -> Iterator[Line]:
    """Reads the lines that fit the handler's event type; the others are refused."""
    run_id = uuid.uuid4().hex
    for number, payload in _payloads(source):
        try:
            if handler:
                handler.decode(payload)
        except PayloadError as error:
            tally.refused.append((number, error.reason))
        else:
            yield Line(number=number, payload=payload, message_id=f"{run_id}:{number}")


def _windows(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Groups lines that may be in flight together."""
    window: list[Line] = []
    size = 0
    for line in lines:
        if window and (len(window) == IN_FLIGHT or size + len(line.payload) > IN_FLIGHT_BYTES):
            yield window
            window, size = [], 0
        window.append(line)
        size += len(line.payload)
    if window:
        yield window


async def _publish_window(
    broker: Broker, subject: str, window: list[Line], *, tally: Tally, retry_for_s: float
) -> bool:
    """Publishes lines at once; from the first one that got no answer on, once more, one after the other.

    A connection that breaks has stored some first ones of them, and an id is stored once, so the order stays.

    Returns:
        False when it gave up on a line, for NATS stays away.
    """
    answers = await asyncio.gather(*(_try(broker, subject, line) for line in window))
    unanswered = next((place for place, answer in enumerate(answers) if answer == NO_ANSWER), len(window))
    for line, answer in zip(window[:unanswered], answers[:unanswered], strict=True):
        tally.note(line, answer)
    for line in window[unanswered:]:
        answer = await _insist(broker, subject, line, retry_for_s)
        if answer == NO_ANSWER:
            tally.note(line, f"no answer within {retry_for_s:g} s; no line after it is confirmed")
            return False
        tally.note(line, answer)
    return True


async def _insist(broker: Broker, subject: str, line: Line, retry_for_s: float) -> str:
    """Publishes one line, again and again under one id while NATS is away, for a while."""
    deadline = asyncio.get_running_loop().time() + retry_for_s
    while (answer := await _try(broker, subject, line)) == NO_ANSWER:
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.2)
    return answer


async def _try(broker: Broker, subject: str, line: Line) -> str:
    """Publishes one line; what went wrong, if anything."""
    try:
        await broker.publish(subject, line.payload, {MSG_ID: line.message_id}, timeout_s=5)
    except BrokerUnavailable:
        return NO_ANSWER
    except (ApiError, BrokerError) as error:
        return str(error)
    return ""


async def _check_stream(broker: Broker, stream: str) -> None:
    """Waits a moment for a worker that is just starting to create the stream.

    Raises:
        BrokerError: the stream is not there.
    """
    deadline = asyncio.get_running_loop().time() + STREAM_WAIT_S
    while await stream_info(broker, stream) is None:
        if asyncio.get_running_loop().time() > deadline:
            raise BrokerError(f"stream {stream} is not there yet: start a worker, or run 'python -m app streams apply'")
        await asyncio.sleep(0.1)


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress
