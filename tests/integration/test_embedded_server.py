"""The embedded server with the real program, shared by several processes."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import attrs
import nats
import pytest
from harness import NatsServer, free_port, wait_until
from nats.js.api import StreamConfig

from models.errors import BrokerError
from streams.locks import LockFile
from streams.server import EmbeddedServer
from streams.server_program import is_answering, read_address, read_pid, write_address

ROOT = Path(__file__).parents[2]
USER = """
import asyncio, sys
from pathlib import Path
from streams.server import EmbeddedServer

async def main():
    async with EmbeddedServer(Path(sys.argv[1])) as server:
        print(server.url, server.is_starter, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
GUEST = """
import asyncio, random, sys
from pathlib import Path
from streams.server import EmbeddedServer
from streams.server_program import is_answering

async def main():
    for _ in range(int(sys.argv[2])):
        async with EmbeddedServer(Path(sys.argv[1])) as server:
            await asyncio.sleep(random.random() * 0.02)
            if not await is_answering(server.address):
                sys.exit("the server was stopped under its user")

asyncio.run(main())
"""


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """A STATE_DIR with a name that needs quoting; no server may be left in it by a test."""
    folder = tmp_path / 'it\'s "my" dätä $HOME {x}'
    yield folder
    lock = LockFile.open(folder / "server.lock")
    is_left = not lock.try_exclusive()
    pid = read_pid(folder / "server.pid")
    if is_left and pid and pid != os.getpid() and lock.is_open_in(pid):
        os.kill(pid, signal.SIGKILL)
    lock.close()
    assert not is_left, "a nats-server was left running"


@contextlib.asynccontextmanager
async def _process(script: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python process of its own that is ended with the block; closing its input asks it to leave."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, *map(str, arguments)), stdin=-1, stdout=-1, stderr=-1, cwd=ROOT
    )
    try:
        yield process
    finally:
        _, told = await process.communicate(b"")
        assert process.returncode in (0, -signal.SIGKILL), told.decode()


async def _told(process: asyncio.subprocess.Process) -> list[str]:
    """The URL that the process uses, and whether it has started the server."""
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().split()


def _pid(state_dir: Path) -> int:
    address = read_address(state_dir)
    assert address is not None and address.pid is not None
    return address.pid


def _is_gone(pid: int) -> Callable[[], bool]:
    return lambda: not Path(f"/proc/{pid}").exists()


def _stands(pid: int) -> bool:
    """Whether a stopped process has come to a stop: its threads do so one after the other."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


async def test_server_keeps_port_and_streams_from_run_to_run(state_dir: Path) -> None:
    """The last user's leave stops the server; the next run has the same URL and the stored messages."""
    async with EmbeddedServer(state_dir) as server, await nats.connect(server.url) as client:
        first = server.address
        await client.jetstream().add_stream(StreamConfig(name="S", subjects=["s"]))
        await client.jetstream().publish("s", b"kept")
    assert not await is_answering(first)
    async with EmbeddedServer(state_dir) as server, await nats.connect(server.url) as client:
        assert (server.url, server.is_starter) == (first.url, True)
        assert (await client.jetstream().get_msg("S", 1)).data == b"kept"


async def test_server_has_a_session_of_its_own(state_dir: Path) -> None:
    """Ctrl-C on the worker's terminal does not reach the server."""
    async with EmbeddedServer(state_dir):
        pid = _pid(state_dir)
        assert os.getsid(pid) == pid != os.getsid(0)


async def test_server_fixed_port_is_used_or_named(state_dir: Path, nats_server: NatsServer) -> None:
    """A fixed port that another program has stops the start; a free one is used, whatever the previous run had."""
    with pytest.raises(BrokerError, match=f"NATS_EMBEDDED_PORT={nats_server.port} can't be used"):
        await EmbeddedServer(state_dir, nats_server.port).__aenter__()
    port = free_port()
    async with EmbeddedServer(state_dir, port) as server:
        assert server.url == f"nats://127.0.0.1:{port}"


async def test_server_automatic_port_gives_way_to_another_program(state_dir: Path, nats_server: NatsServer) -> None:
    """If the port of the previous run is taken now, another one is found, and the stranger is not joined."""
    async with EmbeddedServer(state_dir) as server:
        previous = server.address
    write_address(state_dir, attrs.evolve(previous, port=nats_server.port, url=nats_server.url))
    async with EmbeddedServer(state_dir) as server:
        assert server.address.port != nats_server.port
        assert await is_answering(server.address)


async def test_server_of_a_stale_address_is_not_joined(state_dir: Path, nats_server: NatsServer) -> None:
    """While somebody holds the lock, an address that leads to another server is not believed."""
    async with EmbeddedServer(state_dir) as server:
        write_address(state_dir, attrs.evolve(server.address, port=nats_server.port, url=nats_server.url))
        with pytest.raises(BrokerError, match=r"server\.lock does not answer after 0\.2 s"):
            await EmbeddedServer(state_dir, start_s=0.2).__aenter__()
        write_address(state_dir, server.address)


async def test_server_of_a_copied_folder_is_not_joined(state_dir: Path, tmp_path: Path) -> None:
    """An address file that came with a copy of another STATE_DIR does not lead to that folder's server."""
    async with EmbeddedServer(tmp_path / "original") as original, EmbeddedServer(state_dir) as server:
        write_address(state_dir, original.address)
        with pytest.raises(BrokerError, match="does not answer"):
            await EmbeddedServer(state_dir, start_s=0.2).__aenter__()
        write_address(state_dir, server.address)


async def test_server_is_started_once_by_processes_that_come_at_once(state_dir: Path) -> None:
    """Of several processes on an empty STATE_DIR one starts the server, and all use it; the last one stops it."""
    async with contextlib.AsyncExitStack() as stack:
        users = [await stack.enter_async_context(_process(USER, state_dir)) for _ in range(4)]
        told = [await _told(user) for user in users]
        assert len({url for url, _ in told}) == 1
        assert sorted(is_starter for _, is_starter in told) == ["False", "False", "False", "True"]
        assert (state_dir / "server.log").read_text().count("Starting nats-server") == 1
        pid = _pid(state_dir)
    await wait_until(_is_gone(pid))


async def test_server_is_never_stopped_under_a_user(state_dir: Path) -> None:
    """Processes that join and leave all the time always find a server that lives as long as they use it."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(_process(GUEST, state_dir, 10))
    log = (state_dir / "server.log").read_text()
    assert log.count("Starting nats-server") == log.count("Server Exiting") >= 1


async def test_server_outlives_a_killed_worker(state_dir: Path) -> None:
    """After kill -9 of the process that started it the server runs on, and the next process joins and then stops it."""
    async with _process(USER, state_dir) as worker:
        url, _ = await _told(worker)
        pid = _pid(state_dir)
        worker.kill()
    async with EmbeddedServer(state_dir) as server:
        assert (server.url, server.is_starter, _pid(state_dir)) == (url, False, pid)
    await wait_until(_is_gone(pid))


async def test_server_is_found_when_its_starter_died_before_noting_the_pid(state_dir: Path) -> None:
    """A server whose address has no pid yet is stopped by the server's own pid file."""
    async with _process(USER, state_dir) as worker:
        await _told(worker)
        pid = _pid(state_dir)
        worker.kill()
    address = read_address(state_dir)
    assert address is not None
    write_address(state_dir, attrs.evolve(address, pid=None))
    async with EmbeddedServer(state_dir) as server:
        assert not server.is_starter
    await wait_until(_is_gone(pid))


async def test_server_stays_for_those_who_still_use_it(state_dir: Path) -> None:
    """The starter's leave does not stop the server while another process uses it."""
    async with contextlib.AsyncExitStack() as starter:
        await starter.enter_async_context(EmbeddedServer(state_dir))
        async with _process(USER, state_dir) as other:
            assert (await _told(other))[1] == "False"
            pid = _pid(state_dir)
            await starter.aclose()
            address = read_address(state_dir)
            assert address is not None and address.pid == pid and await is_answering(address)


async def test_server_that_crashed_comes_back_on_its_port(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After kill -9 of the server one of its users starts it again at the same URL, and says so."""
    async with EmbeddedServer(state_dir) as server, EmbeddedServer(state_dir) as second:
        for count in (1, 2):
            os.kill(_pid(state_dir), signal.SIGKILL)
            await wait_until(lambda count=count: len(_restarts(caplog)) == count, what="a restart is logged")
            await wait_until(lambda: is_answering(server.address), what="the server answers")
        assert server.url == second.url
    assert (state_dir / "server.log").read_text().count("Starting nats-server") == 3  # the first start, two restarts


async def test_server_that_cannot_restart_is_tried_again(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While another program has the crashed server's port, the restart is tried again, never on another port."""
    async with EmbeddedServer(state_dir, start_s=2) as server:
        pid, port = _pid(state_dir), server.address.port
        os.kill(pid, signal.SIGKILL)
        is_gone = _is_gone(pid)
        while not is_gone():  # without an await, so that the supervisor can't be faster
            pass
        with socket.create_server(("127.0.0.1", port)):
            await wait_until(lambda: "could not be started again" in caplog.text)
        await wait_until(lambda: is_answering(server.address), what="the server answers on its port")
        assert server.address.port == port


def _restarts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "starting it again" in record.message]


async def test_server_that_is_frozen_is_killed_by_its_last_user(state_dir: Path) -> None:
    """A stopped process can't be joined, and does not survive its last user's leave."""
    async with EmbeddedServer(state_dir, term_s=0.2):
        pid = _pid(state_dir)
        os.kill(pid, signal.SIGSTOP)
        await wait_until(lambda: _stands(pid), what="each of its threads stands")
        with pytest.raises(BrokerError, match="does not answer"):
            await EmbeddedServer(state_dir, start_s=0.2).__aenter__()
    await wait_until(_is_gone(pid))


async def test_server_stop_never_hits_an_innocent_process(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pid that belongs to another process by now is not signalled; the server is left running, with an error."""
    async with _process("input()") as innocent:
        async with EmbeddedServer(state_dir) as server:
            pid = server.address.pid
            assert pid is not None
            write_address(state_dir, attrs.evolve(server.address, pid=innocent.pid))
            (state_dir / "server.pid").write_text(str(os.getpid()))
        assert innocent.returncode is None and await is_answering(server.address)
        assert "was left running" in caplog.text
        innocent.stdin.write(b"\n")  # type: ignore[union-attr]  # a pipe was asked for
    os.kill(pid, signal.SIGKILL)
    await wait_until(_is_gone(pid))


async def test_server_start_that_is_cancelled_leaves_nothing(state_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Cancelling a start at any of its steps leaves neither a server nor a lock."""
    for step in range(6):
        entering = asyncio.create_task(EmbeddedServer(state_dir).__aenter__())
        for _ in range(step):
            await asyncio.sleep(0)
        if step == 5:
            (state_dir / "server.json").unlink(missing_ok=True)
            await wait_until(lambda: read_address(state_dir) is not None, poll_s=0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        if not state_dir.exists():
            continue  # cancelled before its first step
        for name in ("server.lock", "server.users"):
            with contextlib.closing(LockFile.open(state_dir / name)) as lock:
                await wait_until(lock.try_exclusive, what=f"{name} is free")
    assert caplog.text == ""


async def test_server_accepts_the_whole_configuration(state_dir: Path) -> None:
    """The real program takes the configuration without a warning, and has the newer ack subjects switched off."""
    async with EmbeddedServer(state_dir):
        log = (state_dir / "server.log").read_text()
    assert "js_ack_fc_v2 (disabled)" in log
    assert "WRN" not in log and "ERR" not in log
