"""The decision log through faults of the server, the connection and the process: all is stored, once and in order."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from decisions_kit import (
    SUBJECT,
    is_empty,
    is_stored,
    logging_to,
    losses,
    make_streams,
    no_file_grows,
    stored,
    write,
)
from harness import NatsServer, TcpProxy, free_port, wait_until
from service_kit import api, client, messages_of

from streams.broker import Broker, Inbox
from streams.decision_log import ANSWER_S, DecisionLimits, DecisionLog
from streams.health import judge_decisions
from streams.spool import Record, Spool

PROCESS = """
import asyncio, pathlib, sys
from streams.broker import Broker
from streams.decision_log import DecisionLog

async def main():
    decisions = DecisionLog(pathlib.Path(sys.argv[2]))
    async with Broker([sys.argv[1]], name="test") as broker, decisions.publishing(broker):
        for number in range(1, 101):
            decisions.write("decisions.score", b"%d" % number)
        while decisions.facts().spooled < 100:
            await asyncio.sleep(0.01)
        print("spooled", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture
async def server(nats_server: NatsServer) -> NatsServer:
    """A server with the application's streams."""
    await make_streams(nats_server.url)
    return nats_server


async def test_decisions_are_stored_once_and_in_order(server: NatsServer, tmp_path: Path) -> None:
    """What is written at once, more than a batch of it, is stored as it was written; leaving waits for it."""
    async with logging_to(server.url, tmp_path) as decisions:
        await wait_until(lambda: decisions.facts().is_connected)
        write(decisions, 1, 1200)
    assert await stored(server.url) == list(range(1, 1201))
    assert (decisions.facts().published, losses(decisions)) == (1200, {})


async def test_kill_of_the_server_loses_and_repeats_nothing(server: NatsServer, tmp_path: Path) -> None:
    """Decisions go on being taken while the server is killed and started again, again and again."""
    async with logging_to(server.url, tmp_path) as decisions:
        for number in range(1, 3001):
            write(decisions, number, number)
            if number % 1000 == 500:
                server.kill9()
            if number % 1000 == 900:
                await wait_until(lambda: decisions.facts().spooled)
                server.start()
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        await is_empty(decisions)
        assert losses(decisions) == {}
    assert await stored(server.url) == list(range(1, 3001))


async def test_cut_connections_lose_and_repeat_nothing(server: NatsServer, tmp_path: Path) -> None:
    """A connection that is cut in the middle of batches leaves it open what is stored; in the end all is, once."""
    async with TcpProxy(server.port) as proxy, logging_to(proxy.url, tmp_path) as decisions:
        for first in range(1, 4001, 100):
            write(decisions, first, first + 99, size=2600)
            await asyncio.sleep(0.005)
            if first % 800 == 1:
                proxy.cut()
        await is_empty(decisions)
        assert losses(decisions) == {}
    assert await stored(server.url) == list(range(1, 4001))


async def test_answers_that_get_lost_lead_to_no_second_copy(server: NatsServer, tmp_path: Path) -> None:
    """A batch that is stored while its answer is lost goes to disk at the end, is sent again, and is found."""
    async with (
        TcpProxy(server.port, rewrite=(b"MSG _INBOX.", b"MSG _LOST_.")) as proxy,
        logging_to(proxy.url, tmp_path) as decisions,
    ):
        write(decisions, 1, 100)
        await is_stored(server.url, 100)
        assert decisions.facts().published == 0
    async with logging_to(server.url, tmp_path) as decisions:
        await wait_until(lambda: decisions.facts().published == 100)
        write(decisions, 101, 102)
    assert await stored(server.url) == list(range(1, 103))
    assert losses(decisions) == {}


async def test_server_that_falls_silent_has_decisions_go_to_disk(server: NatsServer, tmp_path: Path) -> None:
    """While the connection is open and nothing answers they are kept; afterwards all is stored, once."""
    async with logging_to(server.url, tmp_path) as decisions:
        write(decisions, 1, 10)
        await is_empty(decisions)
        server.pause()
        write(decisions, 11, 20)
        await wait_until(lambda: decisions.facts().spooled == 10, ANSWER_S - 1)
        assert not decisions.facts().is_connected
        write(decisions, 21, 30)
        server.resume()
        await is_empty(decisions)
    assert await stored(server.url) == list(range(1, 31))


async def test_buffer_under_pressure_does_not_wait_long_for_an_answer(server: NatsServer, tmp_path: Path) -> None:
    """More than half full it goes to disk, the batch that is under way first, before the wait would be over."""
    async with (
        TcpProxy(server.port, rewrite=(b"MSG _INBOX.", b"MSG _LOST_.")) as proxy,
        logging_to(proxy.url, tmp_path, limits=DecisionLimits(buffer_count=40)) as decisions,
    ):
        await wait_until(lambda: decisions.facts().is_connected)
        write(decisions, 1, 10)
        await is_stored(server.url, 10)
        write(decisions, 11, 40)
        await wait_until(lambda: decisions.facts().spooled == 40, ANSWER_S - 1)
    async with logging_to(server.url, tmp_path) as decisions:
        await wait_until(lambda: decisions.facts().published == 40)
    assert await stored(server.url) == list(range(1, 41))


async def test_decisions_of_a_killed_process_are_published_by_the_next(server: NatsServer, tmp_path: Path) -> None:
    """What a process had put on disk when it was killed comes first, before the decisions of the one that adopts it."""
    nowhere = f"nats://127.0.0.1:{free_port()}"
    process = subprocess.Popen([sys.executable, "-c", PROCESS, nowhere, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"spooled\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    async with logging_to(server.url, tmp_path) as decisions:
        write(decisions, 101, 102)
        await wait_until(lambda: decisions.facts().published == 102)
    assert await stored(server.url) == list(range(1, 103))
    assert not list(tmp_path.glob("*.spool"))


async def test_torn_spool_is_published_up_to_the_damage(server: NatsServer, tmp_path: Path) -> None:
    """The last record of a file that was cut short is lost and counted, and /health speaks of it for a while."""
    spool = Spool.create(tmp_path)
    spool.append([Record(id=f"a{number}", subject=SUBJECT, payload=b"%d" % number) for number in (1, 2, 3)])
    spool.close()
    os.truncate(spool.path, spool.size_bytes - 1)
    async with logging_to(server.url, tmp_path) as decisions:
        await wait_until(lambda: decisions.facts().published == 2)
        assert (losses(decisions), decisions.facts().is_dropping) == ({"torn": 1}, True)
    assert await stored(server.url) == [1, 2]


async def test_spool_that_is_damaged_meanwhile_is_given_up(server: NatsServer, tmp_path: Path) -> None:
    """What can't be read back is counted, and what comes later is published all the same."""
    server.stop()
    async with logging_to(server.url, tmp_path) as decisions:
        write(decisions, 1, 3)
        await wait_until(lambda: decisions.facts().spooled == 3)
        [path] = tmp_path.glob("*.spool")
        os.truncate(path, 30)
        server.start()
        await wait_until(lambda: losses(decisions) == {"torn": 1})
        write(decisions, 4, 5)
        await is_empty(decisions)
    assert await stored(server.url) == [4, 5]


async def test_leaving_without_nats_keeps_everything_on_disk(server: NatsServer, tmp_path: Path) -> None:
    """Without a connection the end does not wait; the next process publishes what was kept."""
    nowhere = f"nats://127.0.0.1:{free_port()}"
    async with logging_to(nowhere, tmp_path) as decisions:
        write(decisions, 1, 700)
    assert losses(decisions) == {}
    async with logging_to(server.url, tmp_path) as decisions:
        await wait_until(lambda: decisions.facts().published == 700)
    assert await stored(server.url) == list(range(1, 701))


async def test_bounded_spool_keeps_the_oldest(server: NatsServer, tmp_path: Path) -> None:
    """Beyond the bounds of disk and memory new decisions are lost, counted; what was taken is stored later."""
    server.stop()
    limits = DecisionLimits(buffer_count=10, spool_bytes=500)
    async with logging_to(server.url, tmp_path, limits=limits) as decisions:
        taken = []
        for number in range(1, 41):
            if decisions.write(SUBJECT, b"%d" % number):
                taken.append(number)
            await asyncio.sleep(0.005)
        assert len(taken) < 40 and losses(decisions) == {"full": 40 - len(taken)}
        assert decisions.facts().spool_bytes <= 500
        server.start()
        await is_empty(decisions)
    assert await stored(server.url) == taken


async def test_stream_that_is_made_later_gets_what_waited(nats_server: NatsServer, tmp_path: Path) -> None:
    """Before a worker has made the stream the reason says so; then it gets all."""
    async with logging_to(nats_server.url, tmp_path) as decisions:
        write(decisions, 1, 3)
        await wait_until(lambda: decisions.facts().error == f"no stream takes {SUBJECT}")
        await make_streams(nats_server.url)
        await is_empty(decisions)
        assert (decisions.facts().error, losses(decisions)) == (None, {})
    assert await stored(nats_server.url) == [1, 2, 3]


async def test_decisions_that_can_not_be_marked_as_stored_are_stored_once(server: NatsServer, tmp_path: Path) -> None:
    """A disk that fails after publishing is said; what was published is neither sent again nor found by the next."""
    async with TcpProxy(server.port) as proxy, logging_to(proxy.url, tmp_path) as decisions:
        await proxy.refuse()
        await wait_until(lambda: not decisions.facts().is_connected)
        write(decisions, 1, 700)
        await wait_until(lambda: decisions.facts().spooled == 700)
        with no_file_grows():
            await proxy.accept()
            await wait_until(lambda: "decisions can't be kept" in (decisions.facts().error or ""))
        await is_empty(decisions)
        write(decisions, 701, 701)
        await wait_until(lambda: decisions.facts().published == 701)
        assert (decisions.facts().error, losses(decisions)) == (None, {})
    assert await stored(server.url) == list(range(1, 702))


async def test_large_decisions_leave_in_smaller_batches(server: NatsServer, tmp_path: Path) -> None:
    """A batch is bounded in bytes, too: five decisions of 900 kB are three batches of at most two."""
    async with logging_to(server.url, tmp_path) as decisions:
        write(decisions, 1, 5, size=900_000)
        await is_empty(decisions)
    async with client(server.url) as nc:
        headers = [message.headers or {} for message in await messages_of(nc, "DECISIONS")]
    assert [found.get("Nats-Batch-Sequence") for found in headers] == ["1", "2", "1", "2", None]


async def test_decision_that_the_stream_refuses_for_its_size_is_lost_alone(server: NatsServer, tmp_path: Path) -> None:
    """Where somebody has lowered the limit, the answer tells; the others of the batch are stored."""
    async with client(server.url) as nc:
        config = (await api(nc, "STREAM.INFO.DECISIONS"))["config"]
        assert "error" not in await api(nc, "STREAM.UPDATE.DECISIONS", config | {"max_msg_size": 500})
    async with logging_to(server.url, tmp_path) as decisions:
        write(decisions, 1, 2)
        write(decisions, 3, 3, size=600)
        write(decisions, 4, 5)
        await is_empty(decisions)
        assert (losses(decisions), decisions.facts().published) == ({"too_large": 1}, 4)
    assert await stored(server.url) == [1, 2, 4, 5]


async def test_decision_above_the_limit_of_the_stream_is_lost_alone(tmp_path: Path) -> None:
    """It is counted with its reason, before it is sent where the size is known, and the others are stored."""
    with NatsServer(tmp_path, extra="max_payload: 20000") as server:
        await make_streams(server.url)
        async with logging_to(server.url, tmp_path / "var") as decisions:
            write(decisions, 1, 1)
            await is_empty(decisions)
            largest = 20_000 - 16 * 1024 - 512  # room for the headers of a dead letter, and for those of a batch
            assert not decisions.write(SUBJECT, b"x" * (largest + 1))
            assert decisions.write(SUBJECT, b"2".ljust(largest))
            assert losses(decisions) == {"too_large": 1}
        assert await stored(server.url) == [1, 2]


async def test_a_log_that_nobody_publishes_takes_nothing(server: NatsServer, tmp_path: Path) -> None:
    """An error that nobody foresaw ends the publishing: answers say that they are not logged, and the health why."""

    class Broken(Broker):
        async def subscribe_replies(self, *_: object, **__: object) -> Inbox:
            raise LookupError("a mistake")

    decisions = DecisionLog(tmp_path)
    async with Broken([server.url], name="test") as broker:
        await broker.connected.wait()
        with pytest.raises(LookupError):
            async with decisions.publishing(broker):
                assert decisions.write("decisions.score", b"{}")
                await wait_until(lambda: decisions.facts().error, what="it is told")
                assert (decisions.admit("r"), decisions.write("decisions.score", b"{}")) == (None, False)
                assert judge_decisions(decisions.facts()).status == "degraded"
