"""The worker's side of isolated handlers: which can be isolated, and what becomes of a process."""

import asyncio
import functools
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import isolated_handlers
import msgspec
import pytest
from harness import wait_until
from isolated_handlers import ROWS, SUBJECT, Order, Seen
from streams_kit import make_message, make_scope

from models.errors import DeclarationError, Retry, StoreError
from streams.context import Context, Effects, Scope, Written
from streams.isolation import PROCESS_LIMIT, Isolation, check_isolated
from streams.policy import Policy
from streams.subjects import Handler, SubjectTable
from streams.verdict import Fault

HANDLER = isolated_handlers.subjects.handlers[0]
ISOLATED = Policy(isolate="process")


async def top_level(event: Order, ctx: Context) -> None:
    """A function at the top of a module; its SubjectTable is none of the module's names."""


def scope_of(**fields: Any) -> Scope:
    """The scope of the isolated handlers."""
    return make_scope(isolated_handlers.subjects.tables, name="isolated", **fields)


async def run(
    isolation: Isolation,
    what: str = "succeed",
    *,
    handler: Handler = HANDLER,
    scope: Scope | None = None,
    begin: Callable[[], None] = lambda: None,
) -> Effects | Fault:
    """Runs one attempt for Ana."""
    payload = msgspec.json.encode({"user_id": "ana", "n": 7, "what": what})
    message = make_message(1, payload, subject=SUBJECT)
    return await isolation.run(handler, message, "ana", scope=scope or scope_of(), begin=begin)


def handler_in(folder: Path, name: str, body: str) -> Handler:
    """A handler whose module exists for its process alone."""

    async def elsewhere(event: Order, ctx: Context) -> None:
        """Stands for the handler."""

    (folder / f"{name}.py").write_text(body)
    elsewhere.__module__ = name
    return attrs.evolve(HANDLER, function=elsewhere)


def test_isolated_handlers_of_a_module_pass() -> None:
    """A handler and its table at the top of a module are what a process can find."""
    check_isolated([isolated_handlers.subjects])


def test_isolated_closure_is_refused() -> None:
    """A function inside a function can't be found by a process that imports the module."""
    table = SubjectTable("closures")

    @table.on(SUBJECT, policy=ISOLATED)
    async def inner(event: Order, ctx: Context) -> None:
        """A closure."""

    with pytest.raises(DeclarationError, match=r"'closures\.inner'.*'inner' to be a function at the top of module"):
        check_isolated([table])


def test_isolated_handler_whose_table_is_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has to be a name of the handler's module, and the module has to be one that can be imported."""
    table = SubjectTable("lost")
    table.on(SUBJECT, policy=ISOLATED)(isolated_handlers.obey)
    with pytest.raises(DeclarationError, match="SubjectTable 'lost' to be a name at the top of module"):
        check_isolated([table])
    monkeypatch.setattr(top_level, "__module__", "__main__")
    other = SubjectTable("main")
    other.on(SUBJECT, policy=ISOLATED)(top_level)
    with pytest.raises(DeclarationError, match="a module that can be imported, got one in '__main__'"):
        check_isolated([other])


async def test_isolation_gives_the_lanes_rows_and_takes_effects() -> None:
    """A written row that waits for its commit goes before the committed one; effects come back decoded."""
    committed = {("isolated", "ana"): ROWS.encode(Seen(seen=(1,)))}
    async with Isolation() as isolation:
        first = await run(isolation, scope=scope_of(rows=committed))
        waiting: Any = {("isolated", "ana"): Written(Seen(seen=(1, 2)))}
        second = await run(isolation, scope=scope_of(rows=committed, waiting=waiting))
        third = await run(isolation, scope=scope_of(rows=committed, waiting={("isolated", "ana"): Written(None)}))
    rows = [effects.rows["isolated", "ana"].row for effects in (first, second, third) if isinstance(effects, Effects)]
    assert [row.seen for row in rows] == [(1, 7), (1, 2, 7), (7,)]
    assert isinstance(first, Effects) and first.puts["isolated", "ana"] == ROWS.encode(rows[0])
    assert first.adds == [("isolated_totals", "all", "count", 1)]
    assert first.peeks == [("isolated_totals", "all", None)] and first.publishes[0][0] == "signals.echo"


async def test_isolation_uses_a_process_again_and_replaces_one_that_ended() -> None:
    """One idle process serves message after message; the end of an idle one is no failure of the next message."""
    async with Isolation() as isolation:
        assert isinstance(await run(isolation), Effects) and isinstance(await run(isolation), Effects)
        [pid] = isolation.pids
        os.kill(pid, signal.SIGKILL)
        await wait_until(lambda: "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2], what="it has ended")
        assert isinstance(await run(isolation), Effects)
        assert len(isolation.pids) == 1 and pid not in isolation.pids


async def test_isolation_runs_so_many_processes_and_leaves_none() -> None:
    """More messages than processes wait for one; a cancelled attempt's process is killed."""
    async with Isolation() as isolation:
        begun: list[None] = []
        begin = functools.partial(begun.append, None)
        attempts = [asyncio.create_task(run(isolation, "sleep", begin=begin)) for _ in range(PROCESS_LIMIT + 2)]
        await wait_until(lambda: len(begun) == PROCESS_LIMIT, 20, what="all processes run")
        pids = isolation.pids
        assert len(pids) == PROCESS_LIMIT
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)
        assert isolation.pids == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("garble", "the handler's process can't be understood"),
        ("close", "the handler's process ended (it closed its connection)"),
        ("segfault", "the handler's process ended (signal 11)"),
    ],
)
async def test_isolation_makes_the_end_of_a_process_a_failure(what: str, text: str) -> None:
    """Whatever a process does to itself is a fault of kind failure, and its process is gone."""
    async with Isolation() as isolation:
        fault = await run(isolation, what)
        assert isinstance(fault, Fault) and fault.kind == "failure" and fault.text.startswith(text)
        assert isolation.pids == []


def has_group(pid: int) -> bool:
    """Whether anything lives in the process group of this number."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_isolation_ends_what_a_crashed_process_has_started() -> None:
    """A program that a handler has started does not outlive the handler's process, however that came to its end."""
    pids: list[int] = []
    async with Isolation() as isolation:
        fault = await run(isolation, "leave", begin=lambda: pids.extend(isolation.pids))
    assert isinstance(fault, Fault) and fault.text == "the handler's process ended (exit code 3)"
    await wait_until(lambda: not has_group(pids[0]), 5, what="its group is gone")


async def test_isolation_classifies_errors_by_the_policy() -> None:
    """An error comes back as data: its kind, its delay, the line and the traceback."""
    async with Isolation() as isolation:
        faults = [await run(isolation, what) for what in ("reject", "retry", "down", "fail")]
    assert [fault.kind for fault in faults if isinstance(fault, Fault)] == ["reject", "retry", "retry", "failure"]
    assert isinstance(faults[1], Fault) and faults[1].asked_s == 0.01
    assert isinstance(faults[3], Fault) and "isolated_handlers.py" in (faults[3].where or "")
    assert "ValueError: bad" in (faults[3].trace or "")


@pytest.mark.parametrize(
    ("body", "text", "start_s"),
    [
        ("import os; os._exit(4)", "the handler's process ended at its start (exit code 4)", 30),
        ("import time; time.sleep(60)", "the handler's process was not ready within 0.5 s", 0.5),
        ("import nowhere_to_be_found", "the handler's process can't import it (ModuleNotFoundError", 30),
        ("", "the handler's process can't import it (LookupError", 30),
    ],
    ids=["exit", "slow", "import", "empty"],
)
async def test_isolation_blames_no_message_for_a_process_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, text: str, start_s: float
) -> None:
    """It is a fault of kind retry, for the message never ran."""
    monkeypatch.syspath_prepend(tmp_path)
    async with Isolation(start_s=start_s) as isolation:
        fault = await run(isolation, handler=handler_in(tmp_path, "strange_module", body))
    assert isinstance(fault, Fault) and fault.kind == "retry" and fault.text.startswith(text)


@pytest.mark.parametrize("free_count", [0, 3], ids=["for no connection", "for no process"])
async def test_isolation_without_descriptors_is_a_retry(free_count: int) -> None:
    """A machine that can't start another process now may be able to later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(free_count)]  # the lowest ones; a connection takes two, a start two more
    async with Isolation() as isolation:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(free, default=2) + 1, hard))
        for fd in free:
            os.close(fd)
        try:
            fault = await run(isolation)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(fault, Fault) and fault.kind == "retry"
    assert fault.text.startswith("the handler's process can't be started (")


@pytest.mark.parametrize("turns", range(6))
async def test_isolation_cancelled_at_a_start_leaves_no_process(turns: int) -> None:
    """However far the start of a process has come, it is gone when the attempt is cancelled."""
    async with Isolation() as isolation:
        attempt = asyncio.create_task(run(isolation))
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        assert isolation.pids == []
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children]
    assert not any(b"isolation_program" in command for command in commands)


async def test_isolation_of_unreadable_rows_is_a_retry() -> None:
    """A store that can't be read is to blame, and no message: for a row of its own, and for one that it peeks at."""

    def broken(table: str, key: str) -> bytes | None:
        raise StoreError(Path("state.db"), "broken")

    async with Isolation() as isolation:
        with pytest.raises(Retry, match="a row of 'isolated' can't be read"):
            await run(isolation, scope=scope_of(fetch=broken))
        fault = await run(isolation, scope=scope_of(peek=broken))
    assert isinstance(fault, Fault) and fault.kind == "retry" and "can't be read" in fault.text


async def test_isolation_offline_refuses_connections() -> None:
    """A handler that is replayed reaches nobody, from its own process either."""
    async with Isolation(offline=True) as isolation:
        fault = await run(isolation, "connect")
    assert isinstance(fault, Fault) and "NetworkRefused" in fault.text
