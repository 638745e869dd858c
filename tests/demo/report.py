"""What must come of the log, what came of it, and how both are shown.

Nothing here trusts the worker's own sums: each is compared with what was played (demo/rows.py).
"""

import datetime as dt
import json
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
from demo.rows import FEEDBACK, PACKAGE, PAPER, PROVIDER, SYNCED, Event, Impression, licence_of
from rich.console import Console
from rich.table import Table

WIDTH = 80
SHOWN_ROWS = 3


@attrs.frozen(kw_only=True)
class Played:
    """What was stored: ``started`` is the wall clock's seconds at the first publish."""

    count: int
    first_seq: int
    last_seq: int
    duplicates: int
    started: float
    seconds: float


@attrs.frozen(kw_only=True)
class ExpectedRow:
    """What a pseudo-user's row must say in the end: the newest of its synchronisations."""

    synced_at: dt.datetime
    cursor: str
    event_count: int


def expected_rows(events: Iterable[Event]) -> dict[str, ExpectedRow]:
    """The rows of ``user_sync`` that the sound events must lead to, by pseudo-user."""
    rows: dict[str, ExpectedRow] = {}
    for event in events:
        if event.subject != SYNCED or event.damage:
            continue
        payload = json.loads(event.payload)
        at, known = dt.datetime.fromisoformat(payload["synced_at"]), rows.get(payload["user_id"])
        count = known.event_count + 1 if known else 1
        if known and at < known.synced_at:
            rows[payload["user_id"]] = attrs.evolve(known, event_count=count)
        else:
            rows[payload["user_id"]] = ExpectedRow(synced_at=at, cursor=payload["cursor"], event_count=count)
    return rows


@attrs.frozen(kw_only=True)
class Counts:
    """One subject's messages: published, and what the worker says became of them."""

    sent: int
    applied: int
    dead: int


@attrs.frozen(kw_only=True)
class DeadLetter:
    """What a dead letter says of its message."""

    seq: int
    reason: str


@attrs.frozen(kw_only=True)
class Result:
    """What was measured and found; ``found_rows`` are those of ``user_sync``, by pseudo-user."""

    played: Played
    apply_s: float
    counts: Mapping[str, Counts]
    letters: Sequence[DeadLetter]
    found_rows: Mapping[str, dict[str, Any] | None]


def kind_of_reason(reason: str) -> str:
    """A reason without what differs from message to message: instants and places; and without the error's class."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+", "...", reason.removeprefix("PayloadError: "))
    return re.sub(r"\(byte \d+\)", "(byte ...)", text)


def find_problems(
    events: Sequence[Event], played: Played, counts: Mapping[str, Counts], letters: Sequence[DeadLetter]
) -> list[str]:
    """Everything that does not add up, a sentence each; nothing is the proof that all went well.

    Args:
        counts: by subject.
    """
    problems = []
    if (played.count, played.duplicates) != (len(events), 0):
        problems.append(f"{len(events)} events, but {played.count} stored, {played.duplicates} of them duplicates")
    for subject, count in counts.items():
        if count.sent != count.applied + count.dead:
            problems.append(f"{subject}: {count.sent} sent, but {count.applied} applied and {count.dead} dead-lettered")
        sound = sum(event.subject == subject and event.damage is None for event in events)
        if count.applied != sound:
            problems.append(f"{subject}: {sound} sound payloads, but {count.applied} applied")
    broken = {seq for seq, event in enumerate(events, played.first_seq) if event.damage}
    found = [letter.seq for letter in letters]
    if len(found) != len(set(found)):
        problems.append(f"{len(found) - len(set(found))} messages have more than one dead letter")
    if missing := broken - set(found):
        problems.append(f"{len(missing)} broken payloads have no dead letter (sequences {sorted(missing)[:5]})")
    if extra := set(found) - broken:
        problems.append(f"{len(extra)} sound payloads have a dead letter (sequences {sorted(extra)[:5]})")
    return problems


def find_wrong_row(row: Mapping[str, object] | None, expected: ExpectedRow) -> str | None:
    """Why a row of ``user_sync`` is not what the log says, or None."""
    if row is None:
        return "no row"
    providers = row.get("providers")
    known = providers.get(PROVIDER) if isinstance(providers, dict) else None
    if not isinstance(known, dict):
        return f"no provider {PROVIDER}"
    at = dt.datetime.fromisoformat(str(known["synced_at"]))
    if (at, known["cursor"]) != (expected.synced_at, expected.cursor):
        return f"cursor {known['cursor']} at {at} instead of cursor {expected.cursor} at {expected.synced_at}"
    return None


def say(*lines: str) -> None:
    """Prints lines as they are, at once."""
    print(*lines or ("",), sep="\n", flush=True)


def show_table(columns: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Prints a table of a text column and columns of numbers, at most 80 columns wide."""
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for line in lines:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in line))
    console = Console(markup=False, highlight=False)
    console.print(table, width=min(WIDTH, console.width))
    say()


def show_source(wheel: Path, impressions: Sequence[Impression], events: Sequence[Event]) -> None:
    """Says what is played and whose it is."""
    clicks = sum(impression.is_click for impression in impressions)
    users = len({impression.pseudo_user for impression in impressions})
    broken = sum(event.damage is not None for event in events)
    first, last = impressions[0].at, impressions[-1].at
    say(
        'Real data: Open Bandit Dataset, small release, random policy, campaign "all".',
        *(f"  {line}" for line in PAPER),
        f'  Out of the package {PACKAGE}, whose licence field says "{licence_of(wheel)}".',
        "",
        f"{len(impressions):,} impressions of {first:%d} to {last:%d %B %Y}, {clicks} clicks. The log has no users:",
        f"all rows with the same four user features are one of {users} pseudo-users.",
        f"  {SYNCED:22}a pseudo-user's first impression of an hour",
        f"  {FEEDBACK:22}a click, as accepted; no click sends nothing",
        f"  {f'{broken} broken payloads':22}copies of events, damaged for this demo",
        "",
    )


def show_counts(result: Result) -> None:
    """Prints what became of the messages, why some are dead letters, and how fast it went."""
    totals = [sum(getattr(count, name) for count in result.counts.values()) for name in ("sent", "applied", "dead")]
    lines = [(subject, count.sent, count.applied, count.dead) for subject, count in result.counts.items()]
    show_table(("messages", "sent", "applied", "dead-lettered"), [*lines, ("all", *totals)])
    reasons = Counter(kind_of_reason(letter.reason) for letter in result.letters)
    show_table(("dead letters by reason", "messages"), sorted(reasons.items()))
    rates = [
        ("published, stored by the stream", round(result.played.count / result.played.seconds)),
        ("applied, durable in the store", round(totals[1] / result.apply_s)),
    ]
    show_table(("rates, counted from the first publish", "messages/s"), rates)


def show_rows(result: Result, expected: Mapping[str, ExpectedRow]) -> None:
    """Prints the rows of the pseudo-users with the most events."""
    for user in sorted(expected, key=lambda name: -expected[name].event_count)[:SHOWN_ROWS]:
        say(f"GET /state/user_sync/{user}  (after {expected[user].event_count} events)")
        indent = "  "
        text = json.dumps(result.found_rows[user])
        say(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False))
    say()


def find_all_problems(result: Result, events: Sequence[Event], expected: Mapping[str, ExpectedRow]) -> list[str]:
    """Whatever does not add up, in counts, dead letters and rows."""
    problems = find_problems(events, result.played, result.counts, result.letters)
    for user, row in result.found_rows.items():
        if why := find_wrong_row(row, expected[user]):
            problems.append(f"user_sync {user}: {why}")
    return problems


def show_where(folder: Path, is_kept: bool) -> None:
    """Says how to look further."""
    if not is_kept:
        say("", "To look further, keep it: .venv/bin/python tests/demo/run.py --keep")
        folder = Path("<folder>")
    else:
        say("", f"Kept in {folder}. To look further:")
    say(
        f"  export STATE_DIR={folder / 'state'}",
        "  .venv/bin/python -m app state list user_sync",
        "  .venv/bin/python -m app worker     # and GET /health, /state/..., /metrics",
    )
