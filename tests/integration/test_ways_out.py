"""The commands audit, streams accept-loss and streams adopt in this process, on a real server without any worker."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import click.testing
import pytest
from harness import NatsServer
from process_kit import invoke
from service_kit import api, client

from state.sqlite import SqliteStore
from state.store import Change, DeadLetter, Floor, OutboxRow, ParkedMessage, store_path
from streams.broker import Broker

DURABLE = "tipstream-signals"
SUBJECT = "signals.task.synced"


class Desk:
    """A server, a STATE_DIR that it is read with, and the commands."""

    def __init__(self, url: str, state: Path) -> None:
        self.url, self.state = url, state

    async def run(self, *arguments: str, stdin: bytes = b"", state: Path | None = None) -> click.testing.Result:
        """Runs a command."""
        settings = {"NATS_URL": self.url, "STATE_DIR": str(state or self.state)}
        return await asyncio.to_thread(lambda: invoke(*arguments, stdin=stdin, **settings))

    async def prepare(self, *, sent: int, changes: Sequence[Change] = (), floor_seq: int = 0) -> None:
        """Has the streams and durables made, messages sent, and outcomes stored as a worker would."""
        assert (await self.run("streams", "apply")).exit_code == 0
        async with client(self.url) as nc:
            for _ in range(sent):
                await nc.jetstream().publish(SUBJECT, b"{}")
            created = (await api(nc, "STREAM.INFO.SIGNALS"))["created"]
        async with Broker([self.url], name="desk") as broker:
            await broker.connected.wait()
            message = await broker.message_at("SIGNALS", floor_seq)
        assert message is not None
        store = SqliteStore(store_path(self.state))
        store.claim("tipstream")
        store.note_since(DURABLE, {SUBJECT: 2, "signals.tip.feedback": 1})
        floor = Floor(durable=DURABLE, stream="SIGNALS", created=created, seq=floor_seq, ts=message.ts)
        store.commit(changes, [floor], marks=[], sent=[])
        store.end_clean()
        store.close()

    async def change_stream(self, *, purge_below: int = 0, is_made_anew: bool = False) -> None:
        """Purges the stream, or deletes it and makes it anew."""
        async with client(self.url) as nc:
            if purge_below:
                await nc.jetstream().purge_stream("SIGNALS", seq=purge_below)
            if is_made_anew:
                config = (await api(nc, "STREAM.INFO.SIGNALS"))["config"]
                await api(nc, "STREAM.DELETE.SIGNALS")
                await api(nc, "STREAM.CREATE.SIGNALS", config)


@pytest.fixture
def desk(nats_server: NatsServer, tmp_path: Path) -> Desk:
    """A desk of this test alone."""
    return Desk(nats_server.url, tmp_path / "state")


def change(seq: int, **facts: object) -> Change:
    """The outcome of a message; applied, unless ``facts`` say otherwise."""
    return Change(durable=DURABLE, stream="SIGNALS", seq=seq, ts=seq, **facts)  # type: ignore[arg-type]


def parked(seq: int) -> Change:
    """The outcome of a message that waits in the store."""
    message = ParkedMessage(durable=DURABLE, seq=seq, ts=seq, lane="a", subject=SUBJECT, payload=b"{}")
    return change(seq, parked=message)


def dead(seq: int) -> Change:
    """The outcome of a message that was given up; its letter is in the outbox."""
    handler = "signals.task_synced"
    subject = f"deadletters.SIGNALS.{handler}.{seq}"
    row_id = f"{handler}:SIGNALS:{seq}:{seq}:dead"
    row = OutboxRow(id=row_id, lane=row_id, subject=subject, payload=b"", headers={}, created=time.time())
    return change(seq, dead=DeadLetter(handler=handler, at=1.0, error="no"), outbox=[row])


async def test_audit_says_why_messages_are_skipped_and_what_has_no_outcome(desk: Desk) -> None:
    """Skipped before 2, applied 2, nothing of 3 and 5, dead 4 with its letter on its way, pending 6: exit code 3."""
    await desk.prepare(sent=6, changes=[change(2), dead(4)], floor_seq=5)
    audited = await desk.run("audit", "signals")
    row, *remarks = audited.output.splitlines()
    assert (audited.exit_code, row) == (3, f"{DURABLE}\t1 to 6\t6\t1\t1\t1\t1\t0\t2")
    assert remarks[:2] == [f"{DURABLE}: {SUBJECT} is read from sequence 2 on", f"{DURABLE}: no outcome: 3, 5"]
    told = (await desk.run("audit", "signals", "--json", "--from", "4", "--to", "5")).output
    (table,) = json.loads(told)
    assert (table["matched"], table["dead"], table["gap_ranges"]) == (2, 1, [[5, 5]])


async def test_audit_tells_the_removed_from_the_expired(desk: Desk) -> None:
    """What had an outcome is removed, what had none is expired."""
    await desk.prepare(sent=6, changes=[change(2), change(3)], floor_seq=3)
    await desk.change_stream(purge_below=6)
    audited = await desk.run("audit", "signals")
    assert audited.exit_code == 3
    assert audited.output.splitlines() == [
        f"{DURABLE}\t1 to 6\t1\t0\t0\t1\t0\t2\t0",
        f"{DURABLE}: removed from the stream since: 2 applied, 0 dead-lettered",
        f"{DURABLE}: dropped by the stream before they had an outcome: 4 to 5",
    ]


async def test_audit_without_streams_has_nothing_to_find(desk: Desk) -> None:
    """On a server without streams and a folder without a store nothing is wrong; a stream that is gone is."""
    assert (await desk.run("audit")).exit_code == 0
    await desk.prepare(sent=1, changes=[change(1)], floor_seq=1)
    async with client(desk.url) as nc:
        await api(nc, "STREAM.DELETE.SIGNALS")
    gone = await desk.run("audit", "signals")
    assert (gone.exit_code, "stream SIGNALS is gone; it was read up to sequence 1" in gone.output) == (3, True)
    refused = await desk.run("streams", "accept-loss", "--yes")
    assert "stream SIGNALS is gone: make it anew with 'streams apply', or restore it" in str(refused.exception)


async def test_audit_misses_a_letter_when_there_is_no_stream_for_it(desk: Desk) -> None:
    """Without the stream of dead letters, each that is not on its way is named; one that has left is still missed."""
    await desk.prepare(sent=3, changes=[change(2), dead(3)], floor_seq=3)
    async with client(desk.url) as nc:
        await api(nc, "STREAM.DELETE.DEAD_LETTERS")
    assert (await desk.run("audit", "signals")).exit_code == 0
    store = SqliteStore(store_path(desk.state))
    store.commit([], [], marks=[], sent=["signals.task_synced:SIGNALS:3:3:dead"])
    store.close()
    audited = await desk.run("audit", "signals")
    assert audited.output.splitlines()[-1].endswith("1 messages were given up and their dead letters are nowhere: 3")


async def test_accept_loss_lists_refuses_while_some_wait_asks_and_then_writes(desk: Desk) -> None:
    """Counts by class come first; a parked message and an unsent letter stop it; a no changes nothing."""
    await desk.prepare(sent=5, changes=[change(2), parked(3), dead(4)], floor_seq=5)
    assert (await desk.run("streams", "accept-loss")).output == "nothing was lost\n"
    await desk.change_stream(is_made_anew=True)
    refused = await desk.run("streams", "accept-loss", "--yes")
    assert refused.exit_code == 1
    assert f"{DURABLE}: lost sequences 1 to 5 (1 applied, 1 dead-lettered, 1 parked)" in refused.output
    assert f"still wait ({DURABLE}: 1 parked, 1 to be published): run a worker" in refused.output
    store = SqliteStore(store_path(desk.state))
    sent = ["signals.task_synced:SIGNALS:4:4:dead"]
    store.commit([change(3, unparked=True)], [], marks=[], sent=sent)
    store.end_clean()
    store.close()
    declined = await desk.run("streams", "accept-loss", stdin=b"n\n")
    assert (declined.exit_code, "(2 applied, 1 dead-lettered, 0 parked)" in declined.output) == (1, True)
    accepted = await desk.run("streams", "accept-loss", stdin=b"y\n")
    assert (accepted.exit_code, accepted.output.splitlines()[-1]) == (0, "accepted; start the worker")
    assert (await desk.run("streams", "accept-loss")).output == "nothing was lost\n"


async def test_accepted_loss_without_outcomes_says_so(desk: Desk) -> None:
    """A stream made anew before anything of it was handled is accepted, too."""
    await desk.prepare(sent=1, floor_seq=1)
    store = SqliteStore(store_path(desk.state))
    with store.transaction():
        store._writer.execute("update floors set seq = 0, ts = 0")
    store.end_clean()
    store.close()
    await desk.change_stream(is_made_anew=True)
    accepted = await desk.run("streams", "accept-loss", "--yes")
    assert (accepted.exit_code, "lost no message that this store had an outcome of" in accepted.output) == (0, True)


async def test_adopt_asks_and_keeps_a_position_of_its_own(desk: Desk, tmp_path: Path) -> None:
    """A no changes nothing; a store that was the durable's before goes on where it was, whatever --at says."""
    await desk.prepare(sent=5, changes=[change(2)], floor_seq=4)
    other = tmp_path / "other"
    declined = await desk.run("streams", "adopt", DURABLE, "--at", "start", stdin=b"n\n", state=other)
    assert (declined.exit_code, other.exists()) == (1, False)
    for state, said in (
        (other, f"{DURABLE}: goes on after sequence 0"),
        (desk.state, f"{DURABLE}: goes on after sequence 4"),
        (desk.state, f"{DURABLE}: was ours already, after 4"),
    ):
        adopted = await desk.run("streams", "adopt", DURABLE, "--at", "start", "--yes", state=state)
        assert (adopted.exit_code, adopted.output.splitlines()) == (0, [said])
