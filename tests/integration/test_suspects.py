"""Messages that kill the process: each dies three times at most, and no innocent one is given up with it."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import NatsServer, wait_until
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


async def run_until_it_dies_no_more(url: str, folder: Path, *, limit: int, done: Sequence[str]) -> int:
    """Starts the worker again whenever it dies, until all of ``done`` have rows and a start survives; counts deaths."""
    deaths = 0
    while deaths <= limit:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, url, str(folder), env={"PYTHONPATH": f"{Path.cwd()}:{Path.cwd() / 'tests'}"}
        )
        died = asyncio.create_task(child.wait())
        try:
            await wait_until(lambda died=died: died.done() or has_rows(folder, done), 10, what="rows, or a death")
            await asyncio.wait({died}, timeout=2.5)  # one that has died before runs after a second or more
            if not died.done():
                return deaths
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
        deaths = await run_until_it_dies_no_more(nats_server.url, folder, limit=9, done=users)
        info = await js.stream_info("DEAD_LETTERS")
        assert info.state.messages == 2
        for seq in (31, 60):
            letter = await js.get_last_msg("DEAD_LETTERS", f"deadletters.SIGNALS.steps.step.{seq}")
            assert "died 3 times while this message ran alone" in (letter.headers or {})["Tipstream-Error"]
    assert deaths <= 7  # the first unclean end names nobody; then 2 killers x 3 deaths
    reader = SqliteReader(store_path(folder))
    rows = [reader.fetch_row("steps", user) for user in users]
    assert [row and row.row for row in rows] == [{"seen": [1]}] * 58
    reader.close()
