"""Messages that kill the process: each dies three times at most, and no innocent one is given up with it."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from harness import NatsServer, wait_until
from nats.js.errors import NotFoundError
from service_kit import client, payload, publish, stream_is_there

from state.sqlite import SqliteReader
from state.store import store_path

CHILD = """
import asyncio, os, sys
from pathlib import Path
from service_kit import Step, running_service, step_table
from streams import Context

async def behaviour(event: Step, ctx: Context) -> None:
    await asyncio.sleep(0.002)
    if event.n < 0:
        os._exit(9)

async def main() -> None:
    async with running_service(sys.argv[1], Path(sys.argv[2]), [step_table(behaviour)]) as running:
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def run_until_it_dies_no_more(
    url: str, folder: Path, *, limit: int, done: Sequence[str], is_over: Callable[[], Awaitable[bool]]
) -> int:
    """Starts the worker again whenever it dies, until all of ``done`` have rows and it is over; counts deaths."""
    deaths = 0
    while deaths <= limit:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, url, str(folder), env={"PYTHONPATH": f"{Path.cwd()}:{Path.cwd() / 'tests'}"}
        )
        died = asyncio.create_task(child.wait())
        try:
            while not died.done():
                if has_rows(folder, done) and await is_over():
                    return deaths
                await asyncio.wait({died}, timeout=0.05)
            deaths += 1
        finally:
            if not died.done():
                child.kill()
                await died
    raise AssertionError(f"died {deaths} times")


def has_rows(folder: Path, keys: Sequence[str]) -> bool:
    """Whether the store has a row of every key."""
    if not store_path(folder).exists():
        return False
    reader = SqliteReader(store_path(folder))
    try:
        return all(reader.fetch_row("steps", key) for key in keys)
    finally:
        reader.close()


@pytest.mark.timeout(120)  # seven starts of a process, one after the other
async def test_killing_messages_die_three_times_and_innocent_ones_are_applied(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Two killers among 60 messages become dead letters after three deaths each; the others are applied once."""
    folder = tmp_path / "state"
    folder.mkdir()
    users = [f"u{number}" for number in range(58)]
    async with client(nats_server.url) as nc:
        js = nc.jetstream()
        await js.add_stream(name="SIGNALS", subjects=["signals.>"])
        await stream_is_there(nc)
        await publish(nc, [payload(user, 1) for user in users[:30]])
        await publish(nc, [payload("killer-1", -1)])
        await publish(nc, [payload(user, 1) for user in users[30:]])
        await publish(nc, [payload("killer-2", -1)])

        async def are_letters() -> bool:
            return (await js.stream_info("DEAD_LETTERS")).state.messages == 2

        deaths = await run_until_it_dies_no_more(nats_server.url, folder, limit=9, done=users, is_over=are_letters)
        for seq in (31, 60):
            letter = await js.get_last_msg("DEAD_LETTERS", f"deadletters.SIGNALS.steps.step.{seq}")
            assert "died 3 times while this message ran alone" in (letter.headers or {})["Tipstream-Error"]
    assert deaths <= 7  # the first unclean end names nobody; then 2 killers x 3 deaths
    reader = SqliteReader(store_path(folder))
    rows = [reader.fetch_row("steps", user) for user in users]
    assert [row and row.row for row in rows] == [{"seen": [1]}] * 58
    reader.close()


SHARED_CHILD = """
import asyncio, os, sys
from pathlib import Path
import attrs
from service_kit import Step, running_service
from state.tables import Table
from streams import Context, SubjectTable

@attrs.frozen(kw_only=True)
class Count:
    n: int = 0

COUNTS = Table("counts", Count, kind="counters")
table = SubjectTable("steps", tables=[COUNTS], order="none", ack_wait_s=1)

@table.on("signals.step")
async def step(event: Step, ctx: Context) -> None:
    await asyncio.sleep(0.002)
    if event.n < 0:
        os._exit(9)
    ctx.add(COUNTS, event.user_id, "n", 1)

async def main() -> None:
    async with running_service(sys.argv[1], Path(sys.argv[2]), [table]) as running:
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_killing_message_of_a_shared_table_is_given_up_and_its_neighbours_are_applied(
    nats_server: NatsServer, tmp_path: Path
) -> None:
    """Two workers that share a table die of one message, are started again, and give it up; the others are applied."""
    folder = tmp_path / "state"
    folder.mkdir()
    env = {"PYTHONPATH": f"{Path.cwd()}:{Path.cwd() / 'tests'}"}
    command = [sys.executable, "-c", SHARED_CHILD, nats_server.url, str(folder)]
    users = [f"u{number}" for number in range(40)]
    async with client(nats_server.url) as nc:
        js = nc.jetstream()
        await js.add_stream(name="SIGNALS", subjects=["signals.>"])
        await publish(nc, [payload(user, 1) for user in users[:20]])
        await publish(nc, [payload("killer", -1)])
        await publish(nc, [payload(user, 1) for user in users[20:]])
        children: list[asyncio.subprocess.Process] = []
        deaths = 0

        async def letter_is_there() -> bool:
            nonlocal deaths
            alive = [child for child in children if child.returncode is None]
            deaths += len(children) - len(alive)
            while len(alive) < 2:
                alive.append(await asyncio.create_subprocess_exec(*command, env=env))
            children[:] = alive
            try:
                return bool((await js.stream_info("DEAD_LETTERS")).state.messages)
            except NotFoundError:
                return False

        try:
            await wait_until(letter_is_there, 40, what="the dead letter", poll_s=0.05)
            await wait_until(lambda: counts(folder) == dict.fromkeys(users, 1), 15, what="each neighbour applied once")
        finally:
            for child in children:
                child.kill()
                await child.wait()
        letter = await js.get_last_msg("DEAD_LETTERS", "deadletters.SIGNALS.steps.step.21")
        assert "while this message ran alone" in (letter.headers or {})["Tipstream-Error"]
        assert (await js.stream_info("DEAD_LETTERS")).state.messages == 1
    assert 3 <= deaths <= 8


def counts(folder: Path) -> dict[str, int]:
    """How often each user's message was applied."""
    if not store_path(folder).exists():
        return {}
    reader = SqliteReader(store_path(folder))
    try:
        return {row.key: int(str(row.row["n"])) for row in reader.list_rows("counts")}
    finally:
        reader.close()
