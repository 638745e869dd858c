"""``deadletters``: what was given up and why, another try for it, or a last word on it.

An id is ``<table>.<function>:<sequence>``. Letters are read from their stream, what became of them from the store; a
redrive or a drop is a request to the worker that owns the handler.
"""

import asyncio
import base64
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import attrs
import click
import msgspec

from app.cli.session import HasEnvironment, connected, print_json, print_table, run_command
from app.main import build
from app.settings import Settings, load_settings
from state.schema import has_database
from state.sqlite import SqliteReader
from state.store import DeadLetter, store_path
from streams.broker import API_PREFIX, Broker
from streams.changes import DEAD_LETTER_HEADER as HEADER
from streams.lookup import MSG_ID
from streams.provision import stream_info
from streams.redrive import REDRIVE_PREFIX, Request, unescaped
from streams.topology import DEAD_LETTERS, NANOSECONDS

SILENT_S = 10.0
POLL_S = 0.1
UNKNOWN = "unknown"


@attrs.frozen(kw_only=True)
class Letter:
    """A dead letter with what the store knows of it; None when it is another store's."""

    handler: str
    stream: str
    seq: int
    subject: str
    headers: dict[str, str]
    known: DeadLetter | None

    @property
    def id(self) -> str:
        """How commands name it."""
        return f"{self.handler}:{self.seq}"

    @property
    def state(self) -> str:
        """What became of it."""
        return self.known.state if self.known else UNKNOWN

    @property
    def error(self) -> str:
        """The last error: of its last redrive, if there was one."""
        return self.known.error if self.known else self.headers.get(f"{HEADER}Error", "")


@click.group("deadletters")
def deadletters() -> None:
    """Look at messages that were given up, and run them once more or drop them."""


@deadletters.command("list")
@click.option("--handler", help="Those of one handler: <table>.<function>.")
@click.option(
    "--state",
    default="dead",
    show_default=True,
    type=click.Choice(["dead", "applied", "dropped", UNKNOWN, "all"]),
    help="What became of them.",
)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="The newest ones.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
@click.pass_obj
def list_(obj: HasEnvironment, handler: str | None, state: str, limit: int, *, as_json: bool) -> None:
    """List dead letters, oldest first."""
    settings = load_settings(obj.env)
    found = run_command(_letters(settings))
    chosen = [letter for letter in found if handler in (None, letter.handler) and state in ("all", letter.state)][
        -limit:
    ]
    if as_json:
        print_json([_summary(letter) for letter in chosen])
        return
    columns = ("id", "given up", "subject", "failures", "state", "error")
    rows = (_summary(letter) for letter in chosen)
    print_table(columns, ([row[name.replace(" ", "_")] for name in columns] for row in rows))


def _summary(letter: Letter) -> dict[str, Any]:
    attempts = json.loads(letter.headers.get(f"{HEADER}Attempts", "[]"))
    return {
        "id": letter.id,
        "given_up": attempts[-1]["at"] if attempts else "",
        "subject": letter.subject,
        "failures": int(letter.headers.get(f"{HEADER}Failures", "0")),
        "state": letter.state,
        "redrives": letter.known.redrives if letter.known else 0,
        "note": letter.known.note if letter.known else "",
        "error": letter.error,
    }


@deadletters.command("show")
@click.argument("letter_id", metavar="ID")
@click.pass_obj
def show(obj: HasEnvironment, letter_id: str) -> None:
    """Print everything known of one dead letter as JSON, its payload too."""
    print_json(run_command(_show(load_settings(obj.env), letter_id)))


async def _show(settings: Settings, letter_id: str) -> dict[str, Any]:
    async with connected(settings) as broker:
        letter = _find(await _read_letters(settings, broker), letter_id)
        stored = await broker.last_message(DEAD_LETTERS, f"deadletters.{letter.stream}.{letter.handler}.{letter.seq}")
        payload = stored.payload
        if f"{HEADER}Pointer" in letter.headers and (original := await broker.message_at(letter.stream, letter.seq)):
            payload = original.payload
    facts = {name.removeprefix(HEADER).lower(): value for name, value in letter.headers.items() if HEADER in name}
    facts["attempts"] = json.loads(facts.get("attempts", "[]"))
    for name in ("error", "subject", "traceback"):
        if name in facts:
            facts[name] = facts[name].encode("ascii").decode("unicode_escape")
    try:
        shown = {"payload": payload.decode()}
    except UnicodeDecodeError:
        shown = {"payload_base64": base64.b64encode(payload).decode()}
    return (
        {"id": letter.id, "state": letter.state}
        | facts
        | shown
        | {"resolution": attrs.asdict(letter.known) if letter.known else None}
    )


@deadletters.command("redrive")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--handler", help="All of one handler: <table>.<function>.")
@click.option("--all", "is_all", is_flag=True, help="All of this store.")
@click.option("--wait", "wait_s", default=10.0, show_default=True, help="Seconds to wait for the outcomes.")
@click.pass_obj
def redrive(obj: HasEnvironment, ids: tuple[str, ...], *, handler: str | None, is_all: bool, wait_s: float) -> None:
    """Run dead letters' messages once more, each in its lane and under its own sequence.

    Exit code 1 when one stays dead, or has no outcome yet.
    """
    if bool(ids) + bool(handler) + is_all != 1:
        raise click.UsageError("give ids, or --handler, or --all")
    _report(run_command(_ask(load_settings(obj.env), ids, handler, "redrive", wait_s=wait_s)))


@deadletters.command("drop")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="Why; it is kept.")
@click.option("--wait", "wait_s", default=10.0, show_default=True, help="Seconds to wait for the outcomes.")
@click.pass_obj
def drop(obj: HasEnvironment, ids: tuple[str, ...], *, reason: str, wait_s: float) -> None:
    """Let dead letters go for good; they stay in their stream, with the reason in the store."""
    if not reason.strip():
        raise click.UsageError("--reason: expected a text, got nothing")
    _report(run_command(_ask(load_settings(obj.env), ids, None, "drop", reason=reason, wait_s=wait_s)))


def _report(outcomes: Sequence[tuple[str, str, bool]]) -> None:
    for letter_id, outcome, _ in outcomes:
        click.echo(f"{letter_id}: {outcome}")
    if not outcomes:
        click.echo("there is no dead letter")
    if not all(is_good for _, _, is_good in outcomes):
        sys.exit(1)


async def _letters(settings: Settings) -> list[Letter]:
    async with connected(settings) as broker:
        return await _read_letters(settings, broker)


async def _read_letters(settings: Settings, broker: Broker) -> list[Letter]:
    known = _known(settings)
    found = []
    async with _headers(broker) as letters:
        async for subject, headers in letters:
            if subject.startswith(REDRIVE_PREFIX) or f"{HEADER}Sequence" not in headers:
                continue
            handler, seq = headers[f"{HEADER}Handler"], int(headers[f"{HEADER}Sequence"])
            found.append(
                Letter(
                    handler=handler,
                    stream=headers[f"{HEADER}Stream"],
                    seq=seq,
                    subject=unescaped(headers.get(f"{HEADER}Subject", "")),
                    headers=headers,
                    known=known.get((handler, seq)),
                )
            )
    return found


@contextlib.asynccontextmanager
async def _headers(broker: Broker) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, str]]]]:
    """Subject and headers of every message in the dead-letter stream."""
    config = {
        "deliver_policy": "all",
        "ack_policy": "none",
        "headers_only": True,
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": 30 * NANOSECONDS,
    }
    if await stream_info(broker, DEAD_LETTERS) is None:
        raise click.ClickException(f"stream {DEAD_LETTERS} is not there yet; a worker makes it")
    body = {"stream_name": DEAD_LETTERS, "config": config}
    created = await broker.api(f"CONSUMER.CREATE.{DEAD_LETTERS}", body)

    async def read() -> AsyncIterator[tuple[str, dict[str, str]]]:
        messages = broker.read(DEAD_LETTERS, created["name"], created["num_pending"], silent_s=SILENT_S)
        async with contextlib.aclosing(messages):
            async for message, headers in messages:
                yield message.subject, dict(headers)

    try:
        yield read()
    finally:
        await broker.send(f"{API_PREFIX}CONSUMER.DELETE.{DEAD_LETTERS}.{created['name']}")


def _known(settings: Settings) -> dict[tuple[str, int], DeadLetter]:
    """What the store knows of dead letters, by handler and sequence."""
    path = store_path(settings.state_dir)
    if not has_database(path):
        return {}
    with contextlib.closing(SqliteReader(path)) as reader:
        return reader.fetch_dead()


def _find(letters: Iterable[Letter], letter_id: str) -> Letter:
    for letter in letters:
        if letter.id == letter_id:
            return letter
    raise click.ClickException(f"there is no dead letter {letter_id!r}: see 'deadletters list --state all'")


async def _ask(
    settings: Settings, ids: tuple[str, ...], handler: str | None, action: Any, *, reason: str = "", wait_s: float
) -> list[tuple[str, str, bool]]:
    """Sends a request for each letter and waits for what becomes of it: (id, outcome, whether it is good)."""
    names = _current_names(settings)
    async with connected(settings) as broker:
        letters = await _read_letters(settings, broker)
        if ids:
            chosen = [_find(letters, letter_id) for letter_id in ids]
        else:
            chosen = [letter for letter in letters if letter.state == "dead" and handler in (None, letter.handler)]
        for letter in chosen:
            if letter.state != "dead":
                raise click.ClickException(f"{letter.id} is {letter.state}, not dead")
            if letter.handler not in names:
                raise click.ClickException(f"{letter.id}: no handler {letter.handler!r} any more")
        for letter in chosen:
            request = Request(action=action, stream=letter.stream, seq=letter.seq, reason=reason)
            subject = f"{REDRIVE_PREFIX}{names[letter.handler]}"
            await broker.publish(subject, msgspec.json.encode(request), {MSG_ID: uuid.uuid4().hex})
        return await _outcomes(settings, chosen, wait_s)


def _current_names(settings: Settings) -> dict[str, str]:
    """Today's name of each handler, by every name it has had."""
    handlers = [handler for table in build(settings).subject_tables for handler in table.handlers]
    former = {handler.former: handler.name for handler in handlers if handler.former}
    return former | {handler.name: handler.name for handler in handlers}


async def _outcomes(settings: Settings, letters: Sequence[Letter], wait_s: float) -> list[tuple[str, str, bool]]:
    deadline = time.monotonic() + wait_s
    while True:
        known = _known(settings)
        outcomes = [_outcome(letter, known.get((letter.handler, letter.seq))) for letter in letters]
        if time.monotonic() > deadline or not any(outcome.startswith("asked") for _, outcome, _ in outcomes):
            return outcomes
        await asyncio.sleep(POLL_S)


def _outcome(letter: Letter, now: DeadLetter | None) -> tuple[str, str, bool]:
    if now is not None and now.state != "dead":
        return letter.id, now.state, True
    if now is not None and letter.known is not None and now.redrives > letter.known.redrives:
        return letter.id, f"still dead: {now.error}", False
    return letter.id, "asked for; it is done once a worker runs and its lane is free", False
