"""How a replay is shown: a message as text or as a line of JSON, the summary, and the progress bar."""

import collections
import contextlib
import datetime as dt
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import attrs
import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.logs import one_line
from streams.changes import instant
from streams.compare import changed_fields
from streams.plan import Plan
from streams.player import Played
from streams.replay import Progress as ProgressFunction
from streams.replay import Span

_EARLIER = {"parked": "failed or waits", "dead": "dead", "dropped": "dead, dropped", "none": "no outcome"}
PROGRESS_EVERY = 200

encode = msgspec.json.Encoder().encode


def verdict_of(played: Played) -> str:
    """The verdict in one word: applied, retry (no failure), failed (tried again) or dead."""
    verdict = played.verdict
    if verdict.kind == "parked":
        return "failed" if verdict.is_failure else "retry"
    return verdict.kind


def as_json(played: Played, live: str) -> str:
    """A message as a line of JSON; the same messages and handlers give the same bytes."""
    message, verdict, effects = played.message, played.verdict, played.effects
    before = played.before
    facts = {
        "stream": message.stream,
        "seq": message.seq,
        "time": instant(message.ts / 1e9),
        "subject": message.subject,
        "handler": played.handler.name,
        "key": played.key,
        "verdict": verdict_of(played),
        "live": live,
        "error": verdict.error,
        "delay_s": round(verdict.delay_s, 3) if verdict.kind == "parked" else None,
        "where": verdict.where,
        "writes": [
            {"table": table, "key": key, "before": _raw(before.get((table, key))), "after": _raw(row)}
            for (table, key), row in effects.puts.items()
        ],
        "adds": [{"table": table, "key": key, "field": field, "n": n} for table, key, field, n in effects.adds],
        "publishes": [{"subject": subject, "event": _event(payload)} for subject, payload in effects.publishes],
        "peeks": [{"table": table, "key": key, "row": _raw(row)} for table, key, row in effects.peeks],
        "guessed_peeks": played.guessed,
    }
    return encode(facts).decode() + "\n"


def _raw(row: bytes | None) -> Any:
    return None if row is None else msgspec.Raw(row)


def _event(payload: bytes) -> Any:
    """An event's JSON without its line breaks, or, of other bytes, their text."""
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return payload.decode("utf-8", "backslashreplace")
    return msgspec.Raw(msgspec.json.format(payload, indent=-1))


class Printer:
    """Shows messages to a person: a line each, and below it what is written and published."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, played: Played, live: str) -> None:
        """Prints one message."""
        message, verdict = played.message, played.verdict
        when = dt.datetime.fromtimestamp(message.ts // 1_000_000_000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
        words = [f"{message.stream}:{message.seq}", when, played.handler.name, verdict_of(played)]
        if played.key:
            words.insert(3, played.key)
        earlier = "" if live == "applied" else f"  (live: {_EARLIER.get(live, live)})"
        lines = [one_line("  ".join(words)) + earlier]
        if verdict.error:
            wait = f", again in {verdict.delay_s:.3g} s" if verdict.kind == "parked" else ""
            where = f" at {verdict.where}" if verdict.where else ""
            lines.append(one_line(f"    {verdict.error}{where}{wait}"))
        lines += [one_line(f"    {line}") for line in _effect_lines(played)]
        click.echo("\n".join(lines), file=self._out)


def _effect_lines(played: Played) -> Iterator[str]:
    for (table, key), row in played.effects.puts.items():
        before = played.before.get((table, key))
        changes = list(changed_fields(before, row))
        if not changes:
            yield f"{table}/{key}  unchanged"
        for path, old, new in changes:
            yield f"{table}/{key}  {path + ': ' if path else ''}{old} -> {new}"
    for table, key, field, n in played.effects.adds:
        yield f"{table}/{key}  {field} {n:+}"
    for subject, payload in played.effects.publishes:
        yield f"publishes {subject}  {payload.decode('utf-8', 'backslashreplace')[:500]}"
    if played.guessed:
        yield f"{played.guessed} peeks were not kept with the message; answered from the rows of this replay"


@attrs.define(kw_only=True)
class Summary:
    """What became of the messages shown, counted."""

    total: int = 0
    verdicts: collections.Counter[str] = attrs.field(factory=collections.Counter)
    handlers: collections.Counter[str] = attrs.field(factory=collections.Counter)
    writes: int = 0
    publishes: int = 0
    changed: int = 0
    remarks: list[str] = attrs.field(factory=list)

    def count(self, played: Played, live: str) -> None:
        """Adds a message."""
        self.total += 1
        verdict = verdict_of(played)
        self.verdicts[verdict] += 1
        self.handlers[played.handler.name] += 1
        self.writes += len(played.effects.puts) + len(played.effects.adds)
        self.publishes += len(played.effects.publishes)
        self.changed += live in ("applied", "dead", "dropped") and (verdict == "applied") != (live == "applied")

    def end(self, plans: Sequence[Plan]) -> None:
        """Adds what is to be said of the rows that the replay began with."""
        for plan in plans:
            name = plan.table.name
            if plan.trouble:
                self.remarks.append(f"{name}: the rows before the first message are incomplete: {plan.trouble}")
            elif plan.missing_count:
                self.remarks.append(
                    f"{name}: the rows before the first message are incomplete: {plan.missing_count} messages that were"
                    f" applied are no longer in stream {plan.spec.stream}"
                )
            if plan.failed_count:
                first = plan.failed[0]
                self.remarks.append(
                    f"{name}: {plan.failed_count} earlier messages were applied once and fail today,"
                    f" the first at {plan.spec.stream}:{first.seq}: {first.error}"
                )

    def lines(self) -> Iterator[str]:
        """The summary as text."""
        counts = ", ".join(f"{count} {name}" for name, count in self.verdicts.most_common())
        shown = f"{self.total} messages: {counts}" if counts else f"{self.total} messages"
        yield f"{shown}; {self.writes} writes, {self.publishes} publishes"
        if self.changed:
            yield f"{self.changed} end otherwise than they did in the worker"
        yield from self.remarks


@contextlib.contextmanager
def progress_bar(spans: Mapping[str, Span]) -> Iterator[ProgressFunction]:
    """A progress bar on stderr, where that is a terminal and stdout is none: there the messages themselves run by."""
    if not sys.stderr.isatty() or sys.stdout.isatty():
        yield lambda stream, seq: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        tasks = {stream: progress.add_task(stream, total=span.last) for stream, span in spans.items()}

        def advance(stream: str, seq: int) -> None:
            if seq % PROGRESS_EVERY == 0 or seq == spans[stream].last:
                progress.update(tasks[stream], completed=seq)

        yield advance
