"""The proxy and what it leaves out, without a nats-server; and a server that is paused."""

import asyncio
from pathlib import Path

import pytest
from harness import CommandFilter, NatsServer, TcpProxy, wait_until

ACK = b"PUB $JS.ACK.S.d.1.1.1.1.0 4\r\n+ACK\r\n"
TRAFFIC = b"".join(
    (
        b"CONNECT {}\r\nPING\r\n",
        ACK,
        b"PUB signals.x 14\r\nPUB $JS.ACK \r\n\r\n",
        b"HPUB signals.y _INBOX.1 4 8\r\nab\r\nPING\r\n",
        b"\r\n",
        ACK,
        b"PONG\r\n",
    )
)


def is_ack(words: list[bytes]) -> bool:
    """Whether a command is an ack."""
    return words[:1] == [b"PUB"] and words[1].startswith(b"$JS.ACK.")


@pytest.mark.parametrize("size", [1, 2, 7, 1000], ids=["byte", "two", "seven", "whole"])
def test_command_filter_leaves_out_commands_wherever_reads_end(size: int) -> None:
    """Acks are gone, all else is there in order, payloads that look like commands included."""
    keep = CommandFilter(is_ack)
    kept = b"".join(keep(TRAFFIC[start : start + size]) for start in range(0, len(TRAFFIC), size))
    assert kept == TRAFFIC.replace(ACK, b"")


async def test_tcp_proxy_refuses_and_accepts_on_the_same_port() -> None:
    """Refusing ends what is open and lets nobody in; accepting again takes the same port."""
    async with TcpProxy(1) as proxy:
        port = proxy.port
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.accept()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)  # nobody listens on the target's port
        assert proxy.port == port


async def test_wait_until_says_what_did_not_come_true() -> None:
    """A predicate that stays false is named with its last value."""
    with pytest.raises(AssertionError, match="not within 0 s: the sun rises"):
        await wait_until(lambda: False, 0, what="the sun rises")


def test_paused_server_stands_until_it_is_resumed(nats_server: NatsServer) -> None:
    """When ``pause`` returns none of its threads runs, also the second time; after ``resume`` it ends in order."""
    for _ in range(2):
        nats_server.pause()
        threads = Path(f"/proc/{nats_server.pid}/task").iterdir()
        assert {(thread / "stat").read_text().rpartition(")")[2].split()[0] for thread in threads} == {"T"}
    nats_server.resume()
    nats_server.stop()
    assert "Server Exiting" in nats_server.log_text
