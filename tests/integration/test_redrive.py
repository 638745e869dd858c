"""Dead letters that are run once more: under their own sequence, by their own handler, once."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from harness import NatsServer, wait_until
from nats.aio.client import Client
from service_kit import (
    QUICK,
    Running,
    Step,
    Trace,
    all_acked,
    client,
    messages_of,
    payload,
    payloads,
    publish,
    read_rows,
    rows_become,
    running_service,
    stream_is_there,
)

from models.errors import Reject, Retry
from state.sqlite import SqliteReader
from state.store import DeadLetter, StoredRow, store_path
from state.tables import Table
from streams.context import Context
from streams.policy import Policy
from streams.subjects import SubjectTable


def letters_of(state: Path) -> dict[int, DeadLetter]:
    """What the store knows of dead letters, by sequence."""
    reader = SqliteReader(store_path(state))
    try:
        return {seq: letter for (_, seq), letter in reader.fetch_dead().items()}
    finally:
        reader.close()


def row_of(state: Path, key: str) -> StoredRow | None:
    """A row with the message that wrote it."""
    reader = SqliteReader(store_path(state))
    try:
        return reader.fetch_row("steps", key)
    finally:
        reader.close()


async def ask(nc: Client, seq: int, action: str = "redrive", *, to: str = "steps.step", **fields: Any) -> None:
    """Asks the owner of a handler as the command does."""
    request = {"action": action, "stream": "SIGNALS", "seq": seq} | fields
    await nc.jetstream().publish(f"deadletters.redrive.{to}", json.dumps(request).encode())


async def other(event: Step, ctx: Context) -> None:
    """Another handler of the table."""


async def time_has_come(running: Running, state: Path) -> None:
    """Has a parked lane run as if an hour had passed, once the redriven message waits in it too."""
    owned, worker = running.service._owned, running.service._worker("test-steps")
    assert owned is not None and worker is not None
    await wait_until(lambda: letters_of(state)[1].is_waiting and owned.committer.is_idle, what="it waits in the store")
    worker._unparker.take_due(time.time() + 3600)


async def is_serving(running: Running) -> None:
    """Waits until requests are taken."""

    def serves() -> bool:
        owned = running.service._owned
        return bool(owned and owned.redrivers and all(one.floor is not None for one in owned.redrivers.values()))

    await wait_until(serves, what="requests are taken")


class Mending:
    """A table whose handler rejects user0's steps until it is mended; each applied step publishes an event."""

    def __init__(self, *, name: str = "step", renamed_from: str | None = None) -> None:
        self.error: Exception | None = Reject("broken")
        self.runs = 0
        self.hang = False
        self.released = asyncio.Event()
        rows = Table("steps", Trace)
        self.table = SubjectTable("steps", tables=[rows])

        async def step(event: Step, ctx: Context) -> None:
            self.runs += 1
            if self.hang:
                await self.released.wait()
            if self.error and event.user_id == "user0":
                raise self.error
            row = ctx.get(rows, event.user_id) or Trace()
            ctx.put(rows, event.user_id, Trace(seen=(*row.seen, event.n)))
            ctx.publish("feedback.step", {"n": event.n})

        step.__name__ = name
        policy = Policy(max_deliver=1, backoff_s=QUICK.backoff_s)
        self.table.on("signals.step", policy=policy, renamed_from=renamed_from)(step)


async def test_redriven_message_is_applied_once_under_its_own_sequence(nats_server: NatsServer, tmp_path: Path) -> None:
    """Dead turns into applied, with the row and the event of the original message; a second request is refused."""
    state, mending = tmp_path / "state", Mending()
    async with (
        client(nats_server.url) as nc,
        running_service(nats_server.url, state, [mending.table]) as running,
    ):
        await is_serving(running)
        await publish(nc, payloads(2, 3))
        await wait_until(lambda: running.consumer().dead_lettered == 3)
        await all_acked(nc)
        assert {seq: letter.state for seq, letter in letters_of(state).items()} == {1: "dead", 3: "dead", 5: "dead"}
        mending.error = None
        await ask(nc, 3)
        await ask(nc, 3)
        await rows_become(state, {"user0": [1], "user1": [0, 1, 2]})
        row = row_of(state, "user0")
        assert row is not None and row.stream_seq == 3
        await ask(nc, 1)
        await wait_until(lambda: letters_of(state)[1].state == "applied")
        assert [letters_of(state)[seq].redrives for seq in (1, 3, 5)] == [1, 1, 0]
        assert mending.runs == 6 + 2

        async def sent() -> list[str]:
            return sorted(one.headers["Nats-Msg-Id"].split(":")[2] for one in await messages_of(nc, "FEEDBACK"))

        async def all_are_sent() -> bool:
            return len(await sent()) >= 5

        await wait_until(all_are_sent)
        assert await sent() == ["1", "2", "3", "4", "6"]
        letters = [found for found in await messages_of(nc, "DEAD_LETTERS") if "redrive" not in found.subject]
        assert len(letters) == 3
        await running.is_ok()


@pytest.mark.parametrize("error", [Reject("still broken"), Retry(delay_s=60), ValueError("x")], ids=type)
async def test_redriven_message_that_fails_stays_dead(
    nats_server: NatsServer, tmp_path: Path, error: Exception
) -> None:
    """Whatever it raises, the message is not parked and writes no second letter; its error and its tries are kept."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [mending.table]) as running:
        await is_serving(running)
        await publish(nc, payloads(1, 1))
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        mending.error = error
        for redrives in (1, 2):
            await ask(nc, 1)
            await wait_until(lambda redrives=redrives: letters_of(state)[1].redrives == redrives)
        letter = letters_of(state)[1]
        assert (letter.state, letter.error.partition(":")[0]) == ("dead", type(error).__name__)
        assert (running.consumer().parked, running.consumer().dead_lettered) == (0, 1)
        await all_acked(nc)  # the letter is stored then
        letters = [found for found in await messages_of(nc, "DEAD_LETTERS") if "redrive" not in found.subject]
        assert len(letters) == 1


async def test_request_that_can_not_be_done_changes_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    """Nonsense, an unknown sequence, an applied message, another stream: refused, and the next request is served."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [mending.table]) as running:
        await is_serving(running)
        await publish(nc, payloads(2, 1))
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        await nc.jetstream().publish("deadletters.redrive.steps.step", b"{nonsense")
        for seq, fields in ((77, {}), (2, {}), (1, {"stream": "FEEDBACK"})):
            await ask(nc, seq, **fields)
        await ask(nc, 1, "drop", reason="known to be spam")
        await wait_until(lambda: letters_of(state)[1].state == "dropped")
        assert letters_of(state)[1].note == "known to be spam"
        mending.error = None
        await ask(nc, 1)
        await all_acked(nc, "steps-redrive", stream="DEAD_LETTERS")
        assert letters_of(state)[1].state == "dropped" and mending.runs == 2


async def test_redrive_waits_behind_a_parked_lane(nats_server: NatsServer, tmp_path: Path) -> None:
    """While messages of its key wait in the store, a redriven one waits there too, until their time has come."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [mending.table]) as running:
        await is_serving(running)
        await publish(nc, [payload("user0", 0)])
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        mending.error = Retry(delay_s=3600)
        await publish(nc, [payload("user0", 1)])
        await wait_until(lambda: running.consumer().parked == 1)
        await ask(nc, 1)
        await wait_until(lambda: running.consumer().parked == 2)
        mending.error = None
        await time_has_come(running, state)
        await rows_become(state, {"user0": [0, 1]})
        assert letters_of(state)[1].state == "applied"
        await wait_until(lambda: running.consumer().parked == 0)


async def test_redrive_in_the_middle_of_which_the_process_dies_is_safe(nats_server: NatsServer, tmp_path: Path) -> None:
    """A message with which the process died stays dead without another run; asked again, it is applied once."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [mending.table]) as running:
            await is_serving(running)
            await publish(nc, payloads(1, 1))
            await wait_until(lambda: running.consumer().dead_lettered == 1)
            mending.hang = True
            await ask(nc, 1)
            await wait_until(lambda: mending.runs == 2)
            await running.crash()
        later = Mending()
        later.error = None
        async with running_service(nats_server.url, state, [later.table]) as running:
            await wait_until(lambda: letters_of(state)[1].redrives == 1)
            assert letters_of(state)[1].error == "the process died while this message was redriven"
            assert later.runs == 0
            await ask(nc, 1)
            await rows_become(state, {"user0": [0]})
            assert (letters_of(state)[1].state, later.runs) == ("applied", 1)


async def test_redrive_of_a_shared_table_and_of_a_pointer(nats_server: NatsServer, tmp_path: Path) -> None:
    """A table without order redrives too, and a message that was too large for its letter comes from its stream."""
    state, is_broken, seen = tmp_path / "state", True, []
    table = SubjectTable("steps", order="none")

    async def step(event: Step, ctx: Context) -> None:
        if is_broken:
            raise Reject("broken")
        seen.append(event.n)

    table.on("signals.step")(step)
    async with client(nats_server.url) as nc:
        await nc.jetstream().add_stream(name="SIGNALS", subjects=["signals.>"])
        async with running_service(nats_server.url, state, [table]) as running:
            await stream_is_there(nc, "DEAD_LETTERS")
            await wait_until(lambda: bool(running.service._shared and running.service._shared.redrivers))
            await wait_until(lambda: all(one.floor is not None for one in running.service._shared.redrivers.values()))  # type: ignore[union-attr]
            large = json.dumps({"user_id": "u", "n": 7, "filler": "x" * 1_040_000}).encode()
            await publish(nc, [payload("u", 1), large])
            await wait_until(lambda: running.consumer().dead_lettered == 2)
            is_broken = False
            for seq in (1, 2):
                await ask(nc, seq)
            await wait_until(lambda: [letters_of(state)[seq].state for seq in (1, 2)] == ["applied"] * 2)
            assert sorted(seen) == [1, 7]
            letter = await nc.jetstream().get_last_msg("DEAD_LETTERS", "deadletters.SIGNALS.steps.step.2")
            assert (letter.headers or {})["Tipstream-Pointer"] == "SIGNALS:2"


async def test_second_request_for_a_message_that_waits_is_refused(nats_server: NatsServer, tmp_path: Path) -> None:
    """Asked for again, and to be dropped, while it waits behind its lane: it runs once, and the lane goes on."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [mending.table]) as running:
        await is_serving(running)
        await publish(nc, [payload("user0", 0)])
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        mending.error = Retry(delay_s=3600)
        await publish(nc, [payload("user0", 1)])
        await wait_until(lambda: running.consumer().parked == 1)
        for action in ("redrive", "redrive", "drop"):
            await ask(nc, 1, action, reason="again")
        await all_acked(nc, "steps-redrive", stream="DEAD_LETTERS")
        assert letters_of(state)[1].is_waiting
        mending.error = None
        await time_has_come(running, state)
        await wait_until(lambda: letters_of(state)[1].state == "applied")
        await publish(nc, [payload("user0", 2)])
        await wait_until(lambda: len(read_rows(state)["user0"]) == 3)
        assert sorted(read_rows(state)["user0"]) == [0, 1, 2]
        await wait_until(lambda: running.consumer().parked == 0)
        assert (letters_of(state)[1].redrives, letters_of(state)[1].is_waiting) == (1, False)


@pytest.mark.parametrize("what", ["attach", "store"])
async def test_redrive_that_is_dropped_before_its_turn_gets_it_later(
    nats_server: NatsServer, tmp_path: Path, what: str
) -> None:
    """A new attach, or a store that fails, empties the lanes; the request is not over before its message has run."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [mending.table]) as running:
        await is_serving(running)
        await publish(nc, [payload("user0", 0)])
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        mending.error, mending.hang = None, True
        await publish(nc, [payload("user0", 1)])
        await wait_until(lambda: mending.runs == 2)
        worker = running.service._worker("test-steps")
        assert worker is not None
        await ask(nc, 1)
        await wait_until(lambda: len(worker._hand.held) == 2)
        mending.hang = False
        if what == "store":
            running.service._owned.committer._fail("as on a full disk")  # type: ignore[union-attr]
        else:
            worker.consumer.break_off("as after a reconnect")
        await wait_until(lambda: len(worker._hand.held) < 2)
        mending.released.set()
        await wait_until(lambda: letters_of(state)[1].state == "applied")
        await wait_until(lambda: len(read_rows(state)["user0"]) == 2)
        assert (sorted(read_rows(state)["user0"]), letters_of(state)[1].redrives) == ([0, 1], 1)


async def test_request_reaches_only_the_handler_of_the_message(nats_server: NatsServer, tmp_path: Path) -> None:
    """A request on another handler's subject, or with a number that no stream has, is refused; nothing ends for it."""
    state, mending = tmp_path / "state", Mending()
    mending.table.on("signals.other")(other)
    async with client(nats_server.url) as nc, running_service(nats_server.url, state, [mending.table]) as running:
        await is_serving(running)
        await publish(nc, [payload("user0", 0)])
        await wait_until(lambda: running.consumer().dead_lettered == 1)
        mending.error = None
        for action in ("redrive", "drop"):
            await ask(nc, 1, action, to="steps.other", reason="x")
        for seq in (0, -1, 2**63, 2**70):
            await ask(nc, seq)
        await all_acked(nc, "steps-redrive", stream="DEAD_LETTERS")
        assert (letters_of(state)[1].state, letters_of(state)[1].redrives, mending.runs) == ("dead", 0, 1)
        await ask(nc, 1)
        await wait_until(lambda: letters_of(state)[1].state == "applied")


async def test_redrive_under_a_new_name_of_what_the_stream_has_lost(nats_server: NatsServer, tmp_path: Path) -> None:
    """The letter holds the message when its stream no longer does, also under the handler's former name."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [mending.table]) as running:
            await is_serving(running)
            await publish(nc, [payload("user0", 0)])
            await wait_until(lambda: running.consumer().dead_lettered == 1)
            await all_acked(nc)
        await nc.jetstream().purge_stream("SIGNALS", seq=2)
        renamed = Mending(name="stride", renamed_from="step")
        renamed.error = None
        async with running_service(nats_server.url, state, [renamed.table]) as running:
            await is_serving(running)
            await ask(nc, 1, to="steps.stride")
            await rows_become(state, {"user0": [0]})
            await wait_until(lambda: letters_of(state)[1].state == "applied")
            assert letters_of(state)[1].handler == "steps.step"


async def test_durable_of_requests_that_is_refused_is_a_reason(nats_server: NatsServer, tmp_path: Path) -> None:
    """Health says that requests are not taken; the durable is not among the consumers, which go on."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc:
        await nc.jetstream().add_stream(name="DEAD_LETTERS", subjects=["deadletters.>"])
        await nc.jetstream().add_consumer("DEAD_LETTERS", durable_name="test-steps-redrive")
        async with running_service(nats_server.url, state, [mending.table]) as running:
            await running.says("dead letters of steps can't be redriven: durable test-steps-redrive was not made by")
            assert list(running.service.health().nats.consumers) == ["test-steps"]
            mending.error = None
            await publish(nc, [payload("user0", 0)])
            await rows_become(state, {"user0": [0]})
            assert running.consumer().status == "ok"


async def test_stop_does_not_wait_for_requests(
    nats_server: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that stops takes no more messages, redriven ones neither; the next one carries the request out."""
    state, mending = tmp_path / "state", Mending()
    async with client(nats_server.url) as nc:
        async with running_service(nats_server.url, state, [mending.table]) as running:
            await is_serving(running)
            await publish(nc, [payload("user0", 0)])
            await wait_until(lambda: running.consumer().dead_lettered == 1)
            worker = running.service._worker("test-steps")
            assert worker is not None
            mending.error = None
            await worker.drain()
            await ask(nc, 1)
            await wait_until(lambda: "redrive waits" in caplog.text)
            assert letters_of(state)[1].state == "dead" and mending.runs == 1
        async with running_service(nats_server.url, state, [mending.table]) as running:
            await rows_become(state, {"user0": [0]})
            assert letters_of(state)[1].redrives == 1
