"""``replay``: what today's handlers make of stored messages, without touching production."""

import asyncio
import contextlib
import datetime as dt
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO
from urllib.parse import urlsplit

import attrs
import click

from app.cli.instants import Place, PlaceParam, SpanParam
from app.cli.playback import Printer, Summary, as_json, progress_bar
from app.cli.session import HasEnvironment, build_app, connected
from app.cli.where import Where
from app.logs import configure_logging
from app.settings import Settings, load_settings
from models.errors import BrokerError
from state.scratch import Scratch
from state.snapshots import FOLDER, list_snapshots
from state.store import store_path
from streams.broker import Broker
from streams.moment import Moment
from streams.offline import Offline
from streams.patterns import check_pattern, matches, overlap
from streams.plan import Plan
from streams.player import Played, Player
from streams.provision import stream_info
from streams.reading import seq_at
from streams.replay import Span, load_bases, make_plans, replay
from streams.service import consumer_specs
from streams.subjects import SubjectTable
from streams.topology import ConsumerSpec

Chosen = Sequence[tuple[SubjectTable, ConsumerSpec]]


@attrs.frozen(kw_only=True)
class Question:
    """What is asked for, as typed."""

    subjects: tuple[str, ...]
    first: Place | None
    last: Place | None
    ago: dt.timedelta | None
    user: str | None
    handler: str | None
    limit: int | None
    where: Where | None
    is_empty: bool

    def is_about(self, played: Played) -> bool:
        """Whether a message is to be shown."""
        if self.subjects and not any(matches(pattern, played.message.subject) for pattern in self.subjects):
            return False
        if self.user is not None and played.key != self.user:
            return False
        if self.handler is not None and played.handler.name != self.handler:
            return False
        return self.where is None or self.where.holds(played)


@click.command("replay")
@click.argument("subjects", nargs=-1, metavar="[SUBJECT]...")
@click.option("--from", "first", type=PlaceParam(), help="First message: a sequence, or an instant with its zone.")
@click.option("--to", "last", type=PlaceParam(), help="Last message; the stream's last one if not given.")
@click.option("--last", "ago", type=SpanParam(), help="Only the messages of the last 90s, 15m, 2h, 7d.")
@click.option("--user", help="Only the lane of this key.")
@click.option("--handler", help="Only this handler, as <table>.<function>.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--where", help='Only where this holds: \'event.provider == "todoist" && verdict != "applied"\' (CEL).')
@click.option("--empty", "is_empty", is_flag=True, help="Begin with empty tables instead of rows made again.")
@click.option("--json", "is_json", is_flag=True, help="Print a JSON object a line; the summary goes to stderr.")
@click.pass_obj
def replay_command(obj: HasEnvironment, /, *, where: str | None, is_json: bool, **asked: Any) -> None:
    """Run today's handlers on stored messages and show what they would do.

    SUBJECT may be a pattern; without any, all subjects. The rows begin as they were before the first message, made
    again from the newest snapshot before it and the stream. Nothing is written or published, handlers can't connect
    to anybody, and a worker may run meanwhile.
    """
    if asked["ago"] is not None and asked["first"] is not None:
        raise click.UsageError("--last and --from can't be combined")
    question = Question(where=None if where is None else Where(where), **asked)
    settings = load_settings(obj.env)
    chosen = _choose(settings, question)
    configure_logging("error", "text", sys.stderr)
    out, printer = sys.stdout, Printer(sys.stdout)

    def write_json(played: Played, live: str) -> None:
        out.write(as_json(played, live))

    show = write_json if is_json else printer.show
    with asyncio.Runner() as runner:  # asyncio's own loop: it is the one whose connections can be refused
        summary = runner.run(_replay(settings, question, chosen, show))
    _conclude(summary, question, sys.stderr if is_json else sys.stdout)


def _choose(settings: Settings, question: Question) -> Chosen:
    """The subject tables that take the subjects asked for.

    Raises:
        click.UsageError: nobody takes one of them, or there is no such handler.
    """
    tables = {table.name: table for table in build_app(settings).subject_tables}
    known = [handler for table in tables.values() for handler in table.handlers]
    for pattern in question.subjects:
        check_pattern(pattern, "SUBJECT")
        if not any(overlap(handler.subject, pattern) for handler in known):
            there = ", ".join(handler.subject for handler in known)
            raise click.UsageError(f"SUBJECT: no handler takes {pattern!r}; there is {there}")
    if question.handler is not None and question.handler not in {handler.name for handler in known}:
        there = ", ".join(handler.name for handler in known)
        raise click.UsageError(f"--handler: no handler {question.handler!r}; there is {there}")
    return [
        (tables[spec.table], spec)
        for spec in consumer_specs(list(tables.values()), settings.nats_durable_prefix)
        if _is_asked(tables[spec.table], question)
    ]


def _is_asked(table: SubjectTable, question: Question) -> bool:
    if question.handler is not None:
        return question.handler in {handler.name for handler in table.handlers}
    return not question.subjects or any(
        overlap(handler.subject, pattern) for handler in table.handlers for pattern in question.subjects
    )


async def _replay(
    settings: Settings, question: Question, chosen: Chosen, show: Callable[[Played, str], None]
) -> Summary:
    summary = Summary()
    with contextlib.ExitStack() as stack:
        async with connected(settings) as broker:
            moment = stack.enter_context(Moment(store_path(settings.state_dir)))
            scratch = stack.enter_context(Scratch())
            spans = await _spans(broker, chosen, question)
            present = [(table, spec) for table, spec in chosen if spec.stream in spans]
            plans = await _plans(settings, broker, moment, present, question, spans)
            moment.let_go()  # peeks of a message never change, and a worker's log must not grow for a long replay
            load_bases(plans, scratch)
            by_table = {plan.table.name: plan for plan in plans}
            player = Player(
                [table for table, _ in present],
                scratch,
                peeks=lambda table, seq: moment.peeks(by_table[table].durable, seq),
                max_deliver=settings.nats_max_deliver,
                max_payload_bytes=broker.max_payload_bytes,
            )
            stack.enter_context(Offline(addresses(broker)))
            async with player:
                bar = stack.enter_context(progress_bar(spans))
                async with contextlib.aclosing(replay(broker, plans, player, spans=spans, progress=bar)) as all_played:
                    async for played in all_played:
                        if not question.is_about(played):
                            continue
                        live = by_table[played.table.name].known.outcome_of(played.message.seq)
                        summary.count(played, live)
                        show(played, live)
                        if summary.total == question.limit:
                            break
            summary.end(plans)
    return summary


async def _plans(
    settings: Settings,
    broker: Broker,
    moment: Moment,
    chosen: Chosen,
    question: Question,
    spans: Mapping[str, Span],
) -> list[Plan]:
    snapshots = [] if question.is_empty else list_snapshots(settings.state_dir / FOLDER)
    plans = await make_plans(broker, moment, chosen, snapshots, spans=spans)
    if question.is_empty:
        for plan in plans:
            plan.wanted, plan.trouble = {}, None
    return plans


async def _spans(broker: Broker, chosen: Chosen, question: Question) -> dict[str, Span]:
    """The sequences asked for, by stream; a stream that is not there has none."""
    first = question.first if question.ago is None else Place(dt.datetime.now(dt.UTC) - question.ago)
    spans = {}
    for stream in sorted({spec.stream for _, spec in chosen}):
        info = await stream_info(broker, stream)
        if info is None:
            continue
        begin = await _seq_of(broker, stream, first, info["state"]["last_seq"] + 1) if first else 1
        end = info["state"]["last_seq"]
        if question.last:
            end = min(end, await _last_of(broker, stream, question.last, end))
        spans[stream] = Span(first=max(begin, int(info["state"]["first_seq"])), last=end)
    if not spans:
        raise BrokerError("there is no stream yet: a worker makes them")
    return spans


async def _seq_of(broker: Broker, stream: str, place: Place, otherwise: int) -> int:
    if isinstance(place.at, int):
        return place.at
    found = await seq_at(broker, stream, place.at)
    return otherwise if found is None else found


async def _last_of(broker: Broker, stream: str, place: Place, end: int) -> int:
    """The last sequence of a range whose end was typed; of an instant, the last message before it."""
    return place.at if isinstance(place.at, int) else await _seq_of(broker, stream, place, end + 1) - 1


def addresses(broker: Broker) -> set[tuple[str, int]]:
    """Where this connection may come back to, as names and as numbers."""
    found = set()
    for url in broker.urls:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = parts.hostname or "127.0.0.1", parts.port or 4222
        found.add((host, port))
        try:
            found |= {(str(info[4][0]), port) for info in socket.getaddrinfo(host, port)}
        except OSError:
            continue  # a name that can't be resolved now can't be connected to either
    return found


def _conclude(summary: Summary, question: Question, out: TextIO) -> None:
    for line in _lines(summary, question):
        click.echo(line, file=out)


def _lines(summary: Summary, question: Question) -> Iterator[str]:
    yield from summary.lines()
    where = question.where
    if where and where.unanswered:
        yield f"--where could not be answered for {where.unanswered} messages, which are not shown ({where.trouble})"
