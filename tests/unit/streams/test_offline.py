"""The refusal of outgoing connections: nothing leaves, whatever makes it, but to the servers that are allowed."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import aiohttp
import pytest
from harness import HOST

from models.errors import NetworkRefused
from streams.offline import Offline, refused


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A TCP server of loopback that accepts nobody by itself."""
    with socket.create_server((HOST, 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    """A UDP socket of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((HOST, 0))
        server.setblocking(False)
        yield server


def test_offline_refuses_a_socket(listener: socket.socket) -> None:
    """A plain connection is refused with its target, and nobody arrives; afterwards it is free again."""
    address = listener.getsockname()
    with socket.socket() as client:
        with Offline([]), pytest.raises(NetworkRefused, match=f"no outgoing connections .to {HOST}:{address[1]}."):
            client.connect(address)
        with pytest.raises(BlockingIOError):
            listener.accept()
        client.connect(address)
    listener.accept()[0].close()


def test_offline_lets_an_allowed_server_be_reached(listener: socket.socket) -> None:
    """A server that the replay reads from can be looked up and connected to."""
    address = listener.getsockname()
    with Offline([address]), socket.create_connection(address):
        listener.accept()[0].close()


def test_offline_refuses_another_port_of_an_allowed_server(listener: socket.socket) -> None:
    """What is allowed is one port of a host, not the host."""
    address = listener.getsockname()
    with Offline([(HOST, address[1] + 1)]), pytest.raises(NetworkRefused):
        socket.create_connection(address)


async def test_offline_refuses_aiohttp(listener: socket.socket) -> None:
    """A client of aiohttp is refused too, by number and by name."""
    port = listener.getsockname()[1]
    async with aiohttp.ClientSession() as session:
        with Offline([]):
            for host in (HOST, "localhost"):
                with pytest.raises(NetworkRefused, match=f":{port}"):
                    await session.get(f"http://{host}:{port}/")
    with pytest.raises(BlockingIOError):
        listener.accept()


async def test_offline_refuses_streams_of_asyncio(listener: socket.socket) -> None:
    """A connection that the event loop makes is refused before anybody sees it."""
    with Offline([]), pytest.raises(NetworkRefused):
        await asyncio.open_connection(*listener.getsockname())
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    "send",
    [
        lambda client, address: client.sendto(b"x", address),
        lambda client, address: client.sendmsg([b"x"], [], 0, address),
    ],
    ids=["sendto", "sendmsg"],
)
def test_offline_refuses_datagrams(receiver: socket.socket, send: Callable[..., object]) -> None:
    """A datagram needs no connection; it does not leave either."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        with Offline([]), pytest.raises(NetworkRefused):
            send(client, receiver.getsockname())
        with pytest.raises(BlockingIOError):
            receiver.recv(10)
        send(client, receiver.getsockname())
    assert receiver.recv(10) == b"x"


@pytest.mark.parametrize(
    "look_up",
    [
        lambda: socket.getaddrinfo("example.invalid", 80),
        lambda: socket.gethostbyname("example.invalid"),
        lambda: socket.gethostbyaddr("192.0.2.1"),
        lambda: socket.getnameinfo(("192.0.2.1", 80), 0),
    ],
    ids=["getaddrinfo", "gethostbyname", "gethostbyaddr", "getnameinfo"],
)
def test_offline_refuses_to_look_names_up(look_up: Callable[[], object]) -> None:
    """A question to a name server is a packet like any other."""
    with Offline([]), pytest.raises(NetworkRefused, match=r"example\.invalid|192\.0\.2\.1"):
        look_up()


def test_offline_refuses_a_unix_socket() -> None:
    """A path of this machine may be a database or a container's daemon."""
    with Offline([]), socket.socket(socket.AF_UNIX) as client, pytest.raises(NetworkRefused, match="nobody-there"):
        client.connect("nobody-there")


def test_offline_ends_with_its_block() -> None:
    """An error inside ends the refusal too, so that other tests of this process can connect."""
    with contextlib.suppress(ValueError), Offline([]):
        raise ValueError
    with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX) as client:
        client.connect("nobody-there")


def test_watch_sleeps_outside_the_block() -> None:
    """A hook can't be taken back, so before and after the block it lets everything pass."""
    offline, event = Offline([]), ("socket.connect", (None, ("10.0.0.1", 80)))
    offline.watch(*event)
    with offline, pytest.raises(NetworkRefused):
        offline.watch(*event)
    offline.watch(*event)


@pytest.mark.parametrize(
    ("event", "arguments", "expected"),
    [
        ("socket.connect", (None, ("10.0.0.1", 80)), "10.0.0.1:80"),
        ("socket.connect", (None, ("::1", 4222, 0, 0)), None),
        ("socket.connect", (None, ("::1", 4223, 0, 0)), "::1:4223"),
        ("socket.connect", (None, "/run/some.sock"), "/run/some.sock"),
        ("socket.getaddrinfo", ("::1", "4222", 0, 0, 0), None),
        ("socket.getaddrinfo", ("::1", "https", 0, 0, 0), "::1:https"),
        ("socket.getaddrinfo", ("::1", None, 0, 0, 0), "::1:None"),
        ("socket.gethostbyname", ("somewhere",), "somewhere"),
        ("socket.sendmsg", (None, None), None),
        ("socket.bind", (None, ("10.0.0.1", 80)), None),
        ("open", ("file", "r", 0), None),
    ],
)
def test_refused_names_the_target(event: str, arguments: tuple[object, ...], expected: str | None) -> None:
    """What is allowed, needs no target, or connects to nobody is None; all else is named."""
    assert refused(event, arguments, frozenset({("::1", 4222)})) == expected
