"""Handlers in processes of their own: what they ask for is done, and nothing that they do stops anybody."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import isolated_handlers
import msgspec
import pytest
from harness import NatsServer, wait_until
from isolated_handlers import SUBJECT, Seen
from nats.aio.client import Client
from service_kit import (
    Running,
    all_acked,
    client,
    count_of,
    messages_of,
    payload,
    publish,
    rows_become,
    running_service,
    step_table,
    stream_is_there,
)

from state.sqlite import SqliteReader
from state.store import store_path

STANDS_STILL = "the event loop stands still"


def order(n: int, what: str = "succeed", user_id: str = "ana") -> bytes:
    """One event for the isolated handler."""
    return msgspec.json.encode({"user_id": user_id, "n": n, "what": what})


def read(state_dir: Path, table: str = "isolated", key: str = "ana") -> Any:
    """A committed row, or None."""
    if not store_path(state_dir).exists():
        return None
    with contextlib.closing(SqliteReader(store_path(state_dir))) as reader:
        return next((row.row for row in reader.list_rows(table, limit=100) if row.key == key), None)


async def applied(state_dir: Path, *steps: int, key: str = "ana") -> Seen:
    """Waits until a user's steps are applied, as many as given, and compares."""

    def has_all() -> bool:
        return len((read(state_dir, key=key) or {"seen": ()})["seen"]) >= len(steps)

    await wait_until(has_all, 20, what=f"steps {steps}")
    seen = Seen(**read(state_dir, key=key))
    assert tuple(seen.seen) == steps
    return seen


@attrs.frozen
class Bench:
    """A service with the isolated handler and one that is not, and a client beside it."""

    running: Running
    nc: Client
    state: Path

    async def send(self, *events: bytes) -> None:
        await publish(self.nc, events, subject=SUBJECT, at_once=1)

    async def letter(self) -> Any:
        """The one dead letter."""
        await all_acked(self.nc, "isolated")
        letters = await messages_of(self.nc, "DEAD_LETTERS")
        assert len(letters) == 1
        return letters[0]


@pytest.fixture
async def bench(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Bench]:
    """Runs both tables on a server of the test's own."""
    tables = [isolated_handlers.subjects, step_table()]
    async with running_service(nats_server.url, tmp_path, tables) as running, client(nats_server.url) as nc:
        await stream_is_there(nc)
        yield Bench(running, nc, tmp_path)


async def test_isolated_handler_has_its_effects_and_its_order(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Rows, counters, peeks, events and log lines come out as from any handler, in order, whatever it prints."""
    await bench.send(order(0))
    await applied(bench.state, 0)
    await bench.send(*(order(n) for n in range(1, 5)))
    seen = await applied(bench.state, *range(5))
    assert seen.pid != os.getpid() and seen.peeked in range(1, 5)
    assert read(bench.state, "isolated_totals", "all") == {"count": 5}
    await all_acked(bench.nc, "isolated")

    async def are_echoed() -> bool:
        return await count_of(bench.nc, "SIGNALS", "signals.echo") == 5

    await wait_until(are_echoed)
    echoes = [msgspec.json.decode(message.data) for message in await messages_of(bench.nc, "SIGNALS", "signals.echo")]
    assert [echo["n"] for echo in echoes] == [0, 1, 2, 3, 4] and len({echo["id"] for echo in echoes}) == 5
    found = [record for record in caplog.records if record.getMessage() == "obeyed"]
    assert [record.__dict__["fields"]["n"] for record in found] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("way", ["loop", "sleep"])
async def test_isolated_handler_past_its_time_is_killed_and_stops_nobody(
    bench: Bench, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Other tables and other keys go on while it hangs; it is a failure, and after the limit a dead letter."""
    await bench.send(order(1, way), order(2), order(1, user_id="bob"))
    await publish(bench.nc, [payload("ana", n) for n in range(20)])
    await rows_become(bench.state, {"ana": list(range(20))})
    await applied(bench.state, 1, key="bob")
    await bench.running.is_ok()
    await applied(bench.state, 2)
    letter = await bench.letter()
    assert b"ran longer than 1 s" in msgspec.json.encode(letter.headers) + letter.data
    assert STANDS_STILL not in caplog.text


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("segfault", "the handler's process ended (signal 11)"),
        ("kill", "the handler's process ended (signal 9)"),
        ("_exit", "the handler's process ended (exit code 3)"),
        ("exit", "the handler raised SystemExit(enough)"),
        ("fail", "ValueError: bad"),
        ("huge", "the effects can't be handed over"),
    ],
)
async def test_isolated_handler_that_dies_or_fails_is_a_failure_of_its_message(
    bench: Bench, way: str, text: str
) -> None:
    """The message is tried again, then a dead letter; the one behind it runs, in the same service."""
    await bench.send(order(1, way), order(2))
    await applied(bench.state, 2)
    letter = await bench.letter()
    assert text in str(letter.headers) + letter.data.decode()
    assert bench.running.consumer("isolated").errors == 2
    await bench.running.is_ok()


async def test_isolated_handler_rejects_and_retries_as_any_other(bench: Bench) -> None:
    """Reject is a dead letter at once; Retry and retry_on park the message, and count as no failure."""
    await bench.send(order(1, "reject"), order(2))
    await applied(bench.state, 2)
    assert "Reject: no good" in str((await bench.letter()).headers)
    await bench.send(order(3, "retry", "bob"), order(3, "down", "eva"))
    await wait_until(lambda: bench.running.consumer("isolated").errors >= 9, what="many attempts")
    assert bench.running.consumer("isolated").dead_lettered == 1


async def test_stop_in_the_middle_of_a_run_leaves_no_process_and_loses_nothing(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """What ran is dropped with its process, and comes again at the next start."""
    async with client(nats_server.url) as nc:
        tables = [isolated_handlers.subjects]
        async with running_service(nats_server.url, tmp_path, tables, shutdown_s=0.1) as running:
            await stream_is_there(nc)
            await publish(nc, [order(1)], subject=SUBJECT)
            pid = (await applied(tmp_path, 1)).pid
            await publish(nc, [order(2, "sleep"), order(3)], subject=SUBJECT, at_once=1)
            await wait_until(lambda: running.consumer("isolated").ack_pending == 2, what="it runs")
        assert not Path(f"/proc/{pid}").exists()
        async with running_service(nats_server.url, tmp_path, tables):
            await applied(tmp_path, 1, 3)
