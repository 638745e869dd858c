"""Turns a verdict into what the store has to write, without I/O."""

import datetime as dt
import json

import attrs

from state.store import Change, DeadLetter, Failure, OutboxRow, ParkedMessage, Tried
from streams.context import Effects
from streams.runner import Item
from streams.topology import DEAD_LETTER_PREFIX, HEADER_BUDGET_BYTES
from streams.verdict import History, Verdict

DEAD_LETTER_HEADER = "Tipstream-"
JOURNAL_COUNT = 10
JOURNAL_BYTES = 8 * 1024  # of HEADER_BUDGET_BYTES; the newest failure alone takes less than half of it
TEXT_BYTES = 2000  # each of subject, error and traceback


def new_change(durable: str, item: Item) -> Change:
    """The change of a message that has its outcome and writes nothing."""
    message = item.message
    return Change(
        durable=durable,
        stream=message.stream,
        seq=message.seq,
        ts=message.ts,
        unparked=item.is_parked,
        is_redriven=item.is_redriven,
        is_shared=item.is_shared,
        was_noted=item.was_noted,
    )


def applied(durable: str, item: Item, effects: Effects | None, *, now: float) -> Change:
    """The change of a message whose handler succeeded."""
    change = new_change(durable, item)
    if effects is None:
        return change
    change.puts = [(table, key, row) for (table, key), row in effects.puts.items()]
    change.adds = effects.adds
    change.peeks = effects.peeks
    change.outbox = [
        OutboxRow(
            id=f"{item.handler.name}:{item.message.stream}:{item.seq}:{item.ts}:{number}",
            lane=f"{durable}:{item.key}",
            subject=subject,
            payload=payload,
            headers={},
            created=now,
        )
        for number, (subject, payload) in enumerate(effects.publishes)
    ]
    return change


def parked(durable: str, item: Item, verdict: Verdict, *, now: float) -> Change:
    """The change of a message that was tried and waits for its next attempt."""
    history = item.history or History()
    change = parked_behind(durable, item)
    assert change.parked is not None, "parked_behind sets it"
    change.parked = attrs.evolve(
        change.parked,
        due=now + verdict.delay_s,
        since=now - history.age_s,
        failures=history.failures + verdict.is_failure,
        attempts=history.attempts + 1,
    )
    if verdict.is_failure:
        change.failure = Failure(at=now, error=verdict.error or "")
    return change


def parked_behind(durable: str, item: Item) -> Change:
    """The change of a message that waits, not yet tried, behind another one of its lane."""
    message = item.message
    change = new_change(durable, item)
    change.unparked = False
    change.parked = ParkedMessage(
        durable=durable,
        seq=message.seq,
        ts=message.ts,
        lane=item.key,
        subject=message.subject,
        payload=message.payload,
        is_redriven=item.is_redriven,
    )
    return change


def tried(durable: str, item: Item, verdict: Verdict, *, now: float) -> Change:
    """The change of a message that was tried and that the server keeps for its next attempt."""
    history = item.history or History()
    change = new_change(durable, item)
    change.tried = Tried(
        due=now + verdict.delay_s,
        since=now - history.age_s,
        failures=history.failures + verdict.is_failure,
        attempts=history.attempts + 1,
    )
    if verdict.is_failure:
        change.failure = Failure(at=now, error=verdict.error or "")
    return change


@attrs.frozen(kw_only=True)
class LetterFacts:
    """What a dead letter says beside its message: the stream's creation, the application's version."""

    epoch: str
    version: str
    max_payload_bytes: int


def dead(durable: str, item: Item, verdict: Verdict, *, now: float, facts: LetterFacts) -> Change:
    """The change of a message that is given up: its dead letter, in the outbox.

    The payload is the original one; what is known about it stands in headers, in ASCII, whatever the message held. A
    message too large to be copied beside its headers is replaced by a pointer to where it lies. A dead letter that was
    tried once more and failed stays the one it is.
    """
    message = item.message
    error = verdict.error or ""
    change = new_change(durable, item)
    change.dead = DeadLetter(handler=item.handler.name, at=now, error=error)
    if item.is_redriven:
        return change
    failures = (item.history.failures if item.history else 0) + verdict.is_failure
    headers = {
        "Stream": message.stream,
        "Epoch": facts.epoch,
        "Sequence": str(message.seq),
        "Subject": _ascii(message.subject),
        "Time": instant(message.ts / 1e9),
        "Handler": item.handler.name,
        "Failures": str(failures),
        "Error": _ascii(error),
        "Attempts": _journal(item, verdict, now),
        "Version": facts.version,
        "Schema": f"{item.handler.event.__name__}:{item.handler.fingerprint}",
    }
    if verdict.trace:
        headers["Traceback"] = verdict.trace.encode("unicode_escape").decode("ascii")[-TEXT_BYTES:]
    payload = message.payload
    if len(payload) + HEADER_BUDGET_BYTES > facts.max_payload_bytes:
        headers["Pointer"] = f"{message.stream}:{message.seq}"
        payload = b""
    change.outbox = [
        OutboxRow(
            id=f"{item.handler.name}:{message.stream}:{message.seq}:{message.ts}:dead",
            lane=f"{DEAD_LETTER_PREFIX}{message.stream}:{message.seq}",
            subject=f"{DEAD_LETTER_PREFIX}{message.stream}.{item.handler.name}.{message.seq}",
            payload=payload,
            headers={DEAD_LETTER_HEADER + name: value for name, value in headers.items()},
            created=now,
        )
    ]
    return change


def _journal(item: Item, verdict: Verdict, now: float) -> str:
    """The failures with their times as JSON in ASCII, the newest ones where there are many or long ones."""
    earlier = item.history.journal if item.history else ()
    failures = [*earlier, Failure(at=now, error=verdict.error or "")][-JOURNAL_COUNT:]
    told = [{"at": instant(failure.at), "error": failure.error[:300]} for failure in failures]
    while len(text := json.dumps(told)) > JOURNAL_BYTES:
        del told[0]
    return text


def instant(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()


def _ascii(text: str) -> str:
    """Text of users as printable ASCII in one line; the rest is escaped."""
    return text.encode("unicode_escape").decode("ascii")[:TEXT_BYTES]
