"""``deadletters``: what was given up and why, another try for it, or a last word on it.

An id is ``<table>.<function>:<sequence>``, with the handler's name of today or that of the time. A redrive or a drop is
a request to the worker that owns the handler (streams/redrive.py); app/cli/letters.py reads what there is.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import click
import msgspec

from app.cli.letters import UNKNOWN, Letter, current_names, read_known, read_letters, read_payload, show_payload
from app.cli.session import HasEnvironment, build_app, connected, print_json, print_table, run_command
from app.logs import one_line
from app.settings import Settings, load_settings
from state.store import DeadLetter
from streams.broker import Broker
from streams.lookup import MSG_ID
from streams.provision import consumer_info
from streams.redrive import REDRIVE_PREFIX, Request
from streams.service import all_specs
from streams.topology import DEAD_LETTERS

POLL_S = 0.1

Action = Literal["redrive", "drop"]


@attrs.frozen(kw_only=True)
class Answer:
    """What became of a request; ``is_good`` is None while nothing did."""

    id: str
    said: str
    is_good: bool | None


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
    names = current_names(build_app(settings).subject_tables)
    chosen = [
        letter
        for letter in run_command(_letters(settings))
        if (handler is None or letter.is_of(handler, names)) and state in ("all", letter.state)
    ][-limit:]
    if as_json:
        print_json([_summary(letter) for letter in chosen])
        return
    columns = ("id", "given up", "subject", "failures", "state", "error")
    rows = (_summary(letter) for letter in chosen)
    print_table(columns, ([row[name.replace(" ", "_")] for name in columns] for row in rows))


async def _letters(settings: Settings) -> list[Letter]:
    async with connected(settings) as broker:
        return await read_letters(broker, read_known(settings.state_dir))


def _summary(letter: Letter) -> dict[str, Any]:
    attempts = letter.attempts
    return {
        "id": letter.id,
        "given_up": attempts[-1].get("at", "") if attempts else "",
        "subject": letter.subject,
        "failures": letter.failures,
        "state": letter.state,
        "redrives": letter.known.redrives if letter.known else 0,
        "note": letter.known.note if letter.known else "",
        "error": letter.error,
    }


@deadletters.command("show")
@click.argument("letter_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of text.")
@click.pass_obj
def show(obj: HasEnvironment, letter_id: str, *, as_json: bool) -> None:
    """Print everything known of one dead letter, its payload too."""
    facts = run_command(_show(load_settings(obj.env), letter_id))
    if as_json:
        print_json(facts)
    else:
        _print_facts(facts)


async def _show(settings: Settings, letter_id: str) -> dict[str, Any]:
    names = current_names(build_app(settings).subject_tables)
    async with connected(settings) as broker:
        letter = _find(await read_letters(broker, read_known(settings.state_dir)), letter_id, names)
        payload = await read_payload(broker, letter)
    resolution = attrs.asdict(letter.known) if letter.known else None
    return (
        {"id": letter.id, "state": letter.state} | letter.facts() | show_payload(payload) | {"resolution": resolution}
    )


def _print_facts(facts: Mapping[str, Any]) -> None:
    """Prints short facts as a line each, and what has several lines as blocks below; no control character gets out."""
    resolution = facts["resolution"] or {}
    short = {name: value for name, value in facts.items() if isinstance(value, str)}
    short |= {f"resolution.{name}": value for name, value in resolution.items() if value not in (None, "")}
    long = ("traceback", "payload", "payload_base64")
    blocks = {"attempts": "\n".join(f"{told.get('at')}  {told.get('error')}" for told in facts["attempts"])}
    blocks |= {name: short.pop(name) for name in long if name in short}
    for name, value in short.items():
        click.echo(f"{name:<20}  {one_line(str(value))}")
    for name, text in blocks.items():
        click.echo(f"{name}:")
        for line in text.splitlines():
            click.echo(f"    {one_line(line)}")
    if facts.get("payload", "") is None:
        click.echo("payload: too large for the letter, and its stream no longer has it")


@deadletters.command("redrive")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--handler", help="All of one handler: <table>.<function>.")
@click.option("--all", "is_all", is_flag=True, help="All of this store.")
@click.option(
    "--wait",
    "wait_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait for the outcomes; 0 does not wait.",
)
@click.pass_obj
def redrive(obj: HasEnvironment, ids: tuple[str, ...], *, handler: str | None, is_all: bool, wait_s: float) -> None:
    """Run dead letters' messages once more, each in its lane and under its own sequence.

    Exit code 1 when one stays dead, or was waited for and has no outcome yet.
    """
    if bool(ids) + bool(handler) + is_all != 1:
        raise click.UsageError("give ids, or --handler, or --all")
    _report(run_command(_ask(load_settings(obj.env), ids, handler, "redrive", wait_s=wait_s)), wait_s)


@deadletters.command("drop")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="Why; it is kept.")
@click.option(
    "--wait",
    "wait_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds to wait for the outcomes; 0 does not wait.",
)
@click.pass_obj
def drop(obj: HasEnvironment, ids: tuple[str, ...], *, reason: str, wait_s: float) -> None:
    """Let dead letters go for good; they stay in their stream, with the reason in the store."""
    if not reason.strip():
        raise click.UsageError("--reason: expected a text, got nothing")
    _report(run_command(_ask(load_settings(obj.env), ids, None, "drop", reason=reason, wait_s=wait_s)), wait_s)


def _report(answers: Sequence[Answer], wait_s: float) -> None:
    for answer in answers:
        click.echo(f"{answer.id}: {one_line(answer.said)}")
    if not answers:
        click.echo("there is no dead letter")
    if not all(wait_s == 0 if answer.is_good is None else answer.is_good for answer in answers):
        sys.exit(1)


def _find(letters: Sequence[Letter], letter_id: str, names: Mapping[str, str]) -> Letter:
    handler, _, seq = letter_id.rpartition(":")
    for letter in letters:
        if str(letter.seq) == seq and letter.is_of(handler, names):
            return letter
    raise click.ClickException(f"there is no dead letter {letter_id!r}: see 'deadletters list --state all'")


def _choose(
    letters: Sequence[Letter], action: Action, ids: tuple[str, ...], handler: str | None, names: Mapping[str, str]
) -> list[Letter]:
    """The letters that are meant, each once; every one of them can be asked for."""
    if ids:
        chosen = list({letter.id: letter for letter in (_find(letters, one, names) for one in ids)}.values())
    else:
        dead = [letter for letter in letters if letter.state == "dead"]
        chosen = [letter for letter in dead if handler is None or letter.is_of(handler, names)]
    for letter in chosen:
        if letter.state == UNKNOWN:
            raise click.ClickException(f"{letter.id} is not known to the store of this STATE_DIR")
        if letter.state != "dead":
            raise click.ClickException(f"{letter.id} is {letter.state}, not dead")
        if action == "drop" and letter.known and letter.known.is_waiting:
            raise click.ClickException(f"{letter.id} is to run once more: it waits behind parked messages of its key")
        if letter.handler not in names:
            raise click.ClickException(f"{letter.id}: no handler {letter.handler!r} any more")
    return chosen


async def _ask(
    settings: Settings, ids: tuple[str, ...], handler: str | None, action: Action, *, reason: str = "", wait_s: float
) -> list[Answer]:
    """Sends a request for each letter and waits for what becomes of it."""
    tables = build_app(settings).subject_tables
    names = current_names(tables)
    async with connected(settings) as broker:
        letters = await read_letters(broker, read_known(settings.state_dir))
        chosen = _choose(letters, action, ids, handler, names)
        for letter in chosen:
            request = Request(action=action, stream=letter.stream, seq=letter.seq, reason=reason)
            subject = f"{REDRIVE_PREFIX}{names[letter.handler]}"
            await broker.publish(subject, msgspec.json.encode(request), {MSG_ID: uuid.uuid4().hex})
        answers = await _answers(settings, chosen, wait_s)
        if all(answer.is_good is not None for answer in answers):
            return answers
        specs = all_specs(tables, settings.nats_durable_prefix)
        durables = {spec.table: spec.durable for spec in specs if spec.stream == DEAD_LETTERS}
        served = [await _is_served(broker, durables[names[one.handler].partition(".")[0]]) for one in chosen]
    return [
        answer if answer.is_good is not None or is_served else attrs.evolve(answer, said="waits until a worker runs")
        for answer, is_served in zip(answers, served, strict=True)
    ]


async def _is_served(broker: Broker, durable: str) -> bool:
    """Whether a worker is asking for requests."""
    info = await consumer_info(broker, DEAD_LETTERS, durable)
    return info is not None and bool(info["num_waiting"])


async def _answers(settings: Settings, letters: Sequence[Letter], wait_s: float) -> list[Answer]:
    deadline = time.monotonic() + wait_s
    while True:
        known = read_known(settings.state_dir)
        answers = [_answer(letter, known.get((letter.handler, letter.seq))) for letter in letters]
        if time.monotonic() >= deadline or all(answer.is_good is not None for answer in answers):
            return answers
        await asyncio.sleep(POLL_S)


def _answer(letter: Letter, now: DeadLetter | None) -> Answer:
    """What became of a letter since it was read."""
    if now is not None and now.state != "dead":
        return Answer(id=letter.id, said=now.state, is_good=True)
    if now is not None and letter.known is not None and now.redrives > letter.known.redrives:
        return Answer(id=letter.id, said=f"still dead: {now.error}", is_good=False)
    is_behind = now is not None and now.is_waiting
    said = "waits behind parked messages of its key" if is_behind else "asked for, and has no outcome yet"
    return Answer(id=letter.id, said=said, is_good=None)
